"""Disk and wire: everything that distrusts outside bytes, and everything that must survive a crash."""

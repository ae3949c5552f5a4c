"""A member's files on their way elsewhere, into another folder or to the Hub: all of them, each checked."""

from pathlib import Path

from hf_merge.errors import InputError
from hf_merge.storing import chains, member_files
from hf_merge.storing.durable import write_atomic
from hf_merge.storing.library import Member
from hf_merge.storing.member_files import CARD_FILE, MAP_FILE


def whole_files(member: Member) -> dict[str, Path]:
    """Returns every file of a member but its map, by name, each checked; the card has nothing to be checked by.

    Raises:
        InputError: The member was opened for some of its tasks only.
        DigestMismatch: A file is missing or not the one that the map was written for.
    """
    if member.tasks != member.chain_map.tasks:
        raise InputError(
            f"Of {member.source} only what {', '.join(member.tasks)} need is loaded, which is no whole member. "
            "Load it without tasks= to save it."
        )
    member.check_all()
    card = (CARD_FILE,) if (member.folder / CARD_FILE).is_file() else ()
    return {name: member.folder / name for name in (*member.files, *card)}


def copy_member(member: Member, folder: Path) -> None:
    """Copies a member into another folder, every file checked first and the map last.

    Raises:
        InputError: The member was opened for some of its tasks only.
        RunFolderError: The folder holds something that is no member of ours.
        DigestMismatch: A file of the member is missing or not the one that its map was written for.
        ResourceError: The disk refused; the folder is then no member.
    """
    paths = whole_files(member)
    if folder.exists() and folder.samefile(member.folder):
        return
    member_files.empty_folder(folder)
    for name, path in paths.items():
        member_files.copy_file(path, folder / name)
    write_atomic(folder / MAP_FILE, chains.dump(member.chain_map))

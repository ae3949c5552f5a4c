"""A loaded member on its way elsewhere: opened again, as its files may have changed, and pushed in one commit."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin

from hf_merge.errors import DigestMismatch, HubError
from hf_merge.storing import hub
from hf_merge.storing.chains import ChainMap, dump, parse
from hf_merge.storing.copying import copy_member, whole_files
from hf_merge.storing.library import MAP_FILE, Member


class SavedMember(ModelHubMixin):
    """What `MergeModel` can do with the files that it was loaded from.

    Attributes:
        chain_map: Everything `chains.json` said when it was loaded.
    """

    _member: Member
    chain_map: ChainMap

    def save_pretrained(
        self, save_directory: str | Path, *, repo_id: str | None = None, push_to_hub: bool = False, **options: Any
    ) -> str | None:
        """Copies the member's files, each checked first; saved where it was loaded from, it stays as it is.

        A model of some tasks cannot be saved: its shards and its map speak of the others too. `materialize` gives one
        task's model that can.

        Args:
            save_directory: A new or empty folder, or one that holds a member.
            repo_id: Where to push to; by default the name of the folder.
            push_to_hub: Whether to push as well.
            options: Those of `push_to_hub`.

        Returns:
            The address of the commit, or None without `push_to_hub`.

        Raises:
            InputError: The model was loaded with `tasks=`.
            RunFolderError: The folder holds something else.
            DigestMismatch: A file of the member was damaged since it was loaded.
        """
        # The mixin's own would first delete any config.json there, whoever it belongs to.
        self._save_pretrained(Path(save_directory))
        return self.push_to_hub(repo_id or Path(save_directory).name, **options) if push_to_hub else None

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Pushes the member's files, each checked first, in one commit; what the repo holds already is not sent again.

        The card is pushed as it is: `hf-merge push` writes one for a whole family, and a family to go with it.

        Args:
            repo_id: The Hub id; without a namespace it is the user's own. The repo is made if need be.
            commit_message: The first line of the commit.
            private: Whether only some may see the repo; None leaves that to the account and to the repo as it is.
            token: As everywhere in huggingface_hub.
            branch: The branch, None for the default one.
            create_pr: Open a pull request instead.

        Returns:
            The address of what was pushed.

        Raises:
            InputError: The model was loaded with `tasks=`, or the repo cannot be called so.
            DigestMismatch: A file of the member was damaged since it was loaded.
            HubError: The Hub refuses it or cannot be reached, nobody is logged in, or the repo holds something else.
        """
        return push_member(
            self._member,
            self.chain_map,
            repo_id,
            message=commit_message,
            private=private,
            branch=branch,
            create_pr=create_pr,
            access=hub.Access(token),
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        copy_member(reopened(self._member, self.chain_map), save_directory)


def reopened(member: Member, chain_map: ChainMap) -> Member:
    """Returns a member with nothing checked yet: its files may have changed since they were loaded.

    Raises:
        DigestMismatch: Its map is another one than `chain_map`.
    """
    again = Member(member.folder, member.tasks, source=member.source)
    if again.chain_map != chain_map:
        raise DigestMismatch(f"{again.source}: {MAP_FILE} was written over since it was loaded. Load it again.")
    return again


def push_member(
    member: Member,
    chain_map: ChainMap,
    repo_id: str,
    *,
    message: str | None,
    private: bool | None,
    branch: str | None,
    create_pr: bool,
    access: hub.Access,
) -> str:
    """Returns the address of the commit that holds a member; the arguments are those of `MergeModel.push_to_hub`.

    Raises:
        InputError: The member was opened for some of its tasks only, or the repo cannot be called so.
        DigestMismatch: A file of the member was damaged since it was loaded.
        HubError: The Hub refuses it or cannot be reached, nobody is logged in, or the repo holds something else.
    """
    files = whole_files(reopened(member, chain_map))
    held = hub.read_file(hub.full_name(repo_id, access), MAP_FILE, branch, access=access)
    if held is not None and (other := parse(held).id) != chain_map.id:
        raise HubError(f"'{repo_id}' holds {other}, not {chain_map.id}; nothing was sent. Push to another name.")
    pushed = hub.push_files(
        repo_id,
        {**files, MAP_FILE: dump(chain_map)},
        message=message or f"Push {chain_map.id} with hf-merge",
        tag=None if create_pr else chain_map.id,
        private=private,
        branch=branch,
        create_pr=create_pr,
        owned=hub.MEMBER_FILES,
        marker=MAP_FILE,
        access=access,
    )
    return pushed.url

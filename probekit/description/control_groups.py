"""Control groups: what Linux leaves to a container, a SLURM job or a Kubernetes pod of the machine's memory.

A process that takes more than its group may have is killed by the system, without an error that it could handle.
Source: "Control Group v2" (memory.max, memory.current, memory.stat) and "Memory Resource Controller" (version 1) in the
Linux kernel's documentation.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

# By version: where its groups are, the files of the limit and of what is used, and what of that are files' pages
# which have not been used lately, so that the system drops them first.
_VERSIONS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def left_by_groups(system: Path = Path("/")) -> list[int]:
    """Bytes that the groups of this process leave it: one entry for each group on the way up that has a limit."""
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        folder, *files = _VERSIONS[2 if number == "0" else 1]
        root = system / "sys/fs/cgroup" / folder
        # In a container the path may be the host's, and the group itself stands at the root.
        for part in (PurePosixPath(path), *PurePosixPath(path).parents):
            left = _left(root / part.relative_to("/") if part.is_absolute() else root, *files)
            if left is not None:
                found.append(left)
    return found


def _left(group: Path, limit: str, used: str, inactive: str) -> int | None:
    try:
        most = (group / limit).read_text(encoding="utf-8").strip()
        if not most.isdecimal():  # `max`: none
            return None
        taken = int((group / used).read_text(encoding="utf-8"))
        counts = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text("utf-8").splitlines())
        return max(0, int(most) - taken + int(counts.get(inactive, 0)))
    except (OSError, ValueError):
        return None

"""The commit protocol as a machine: attempts write, die, commit and are read, in any order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.artifacts.commit import commit, digest, find, read_file, write_file
from pipeline.artifacts.manifests import FileEntry, ScoresManifest
from pipeline.artifacts.storage import Storage
from pipeline.contract import ImageSpec

NUM_FILES = 3


class Attempts(RuleBasedStateMachine):
    """An output to which runs of several settings write; a file's name decides its content."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.storage = Storage(str(self.folder))
        self.written: dict[int, dict[str, FileEntry]] = {0: {}, 1: {}}
        self.committed: ScoresManifest | None = None

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @rule(setting=st.integers(0, 1), number=st.integers(0, NUM_FILES - 1))
    def write(self, setting: int, number: int) -> None:
        path = f"part-{digest(setting)}-{number}"
        entry = write_file(self.storage, "", path, f"{setting} {number}".encode() * 50, rows=1)
        self.written[setting][path] = entry

    @rule(setting=st.integers(0, 1), name=st.sampled_from(["part-x", "manifest.json"]))
    def die(self, setting: int, name: str) -> None:
        """Leave what a process leaves when it is killed while it writes."""
        (self.folder / f".{name}.{setting}.tmp").write_bytes(b"half")

    @rule(setting=st.integers(0, 1))
    def finish(self, setting: int) -> None:
        files = self.written[setting]
        if len(files) == NUM_FILES:
            manifest = ScoresManifest(
                model=f"m/{setting:012}",
                image=ImageSpec(1, 1, ("a",)),
                probabilities=False,
                columns=(),
                rows_per_shard=1,
                inputs=(),
                rows=NUM_FILES,
                files=tuple(files[path] for path in sorted(files)),
            )
            commit(self.storage, "", manifest)
            self.committed = manifest

    @invariant()
    def a_reader_sees_what_was_committed_last_whole(self) -> None:
        committed = find(self.storage, "", ScoresManifest)
        assert committed == self.committed
        for entry in committed.files if committed else ():
            assert committed
            setting = int(committed.model.rpartition("/")[2])
            expected = f"{setting} {entry.path.rpartition('-')[2]}".encode() * 50
            assert read_file(self.storage, "", entry) == expected


TestAttempts = Attempts.TestCase
TestAttempts.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)

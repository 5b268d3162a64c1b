"""Where the files of a run are, and who holds it."""

from pathlib import Path

from server.run.folder import RunFolder, is_running, run_lock


def test_every_file_of_a_run_is_in_its_folder_under_its_name(tmp_path: Path):
    folder = RunFolder(tmp_path)
    found = (folder.bank, folder.plan, folder.journal, folder.blobs, folder.key, folder.progress)
    assert [file.name for file in found] == [
        "bank", "plan.json", "journal.sqlite", "blobs", "signing.key", "progress",
    ]  # fmt: skip
    assert {file.parent for file in found} == {tmp_path}


def test_a_run_is_running_while_its_lock_is_held_in_a_folder_that_is_made(tmp_path: Path):
    folder = RunFolder(tmp_path / "not" / "there" / "yet")
    with run_lock(folder, lambda: None):
        assert is_running(folder)
        with run_lock(RunFolder(tmp_path / "another"), lambda: None):
            pass
    assert not is_running(folder)
    with run_lock(folder, lambda: None):
        assert is_running(folder)

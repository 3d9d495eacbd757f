"""A hundred malformed demonstrations through every reader: read or refused, nothing else."""

from tests import fuzz_demos


def test_malformed_files_are_read_or_refused():
    figures = fuzz_demos.fuzz(100, seed=10_000)
    assert figures["failures"] == []
    assert figures["outcomes"].keys() == {"read", "refused"}
    assert figures["slowest_seconds"] < fuzz_demos.SECONDS
    assert figures["peak_memory_mb"] * 10**6 < fuzz_demos.BYTES


def test_faults_of_a_reader_would_be_seen(tmp_path, monkeypatch):
    """The outcomes that must not be: an error of another kind, a message of two lines."""
    good = tmp_path / "none.npz"
    assert fuzz_demos.outcome_of(good) == "refused"
    for error, outcome in (
        (KeyError("x"), "traceback"),
        (fuzz_demos.DemoError(f"{good}:\nno"), "message"),
        (fuzz_demos.DemoError("no"), "message"),
    ):

        def fails(path, error=error):
            raise error

        monkeypatch.setattr(fuzz_demos, "read", fails)
        assert fuzz_demos.outcome_of(good).startswith(outcome)

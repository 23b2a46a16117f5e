"""The line that a user reads."""

from assay.formats import InputError


def test_what_to_do_ends_without_a_full_stop() -> None:
    """It may be a command or an address, to which one would be taken to belong; so none has one."""
    for remedy in ("Give 1", "Give 1."):
        error = InputError("0 is too small", where="-n", remedy=remedy)
        assert (str(error), error.remedy) == ("-n: 0 is too small. Give 1", "Give 1")

"""Bringing engines before the judge: what ``assay parity``, ``flips``, ``bisect`` and ``axes`` have in common."""

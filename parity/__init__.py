"""The judge: where do two engines part, is it rounding or a bug, and can it change a token?

It is handed engines (``contract.engine.Engine``) and knows none of them, so anybody's can be put before it.

    sample.py       the gate: same prompt, ids, weights, stages, shapes; otherwise no number is computed
    precision.py    what an arithmetic declares to round, as a tap that rounds an oracle in the same way at random
    distance.py     how far one activation is from the true one
    coherence.py    what of that points one way, as a fault does and rounding does not
    floor.py        what noisy runs allow: an error in units of it
    bounds.py       what f32 can be wrong by, derived: an oracle beyond it is accused
    visible.py      the smallest fault that a floor would have shown
    stages.py       every stage of every layer fed with the truth: the error that is its own, beside the floor
    rows.py         where the rows belong that a tap is shown: a prompt comes in pieces, an answer token by token
    ways.py         windows of a text where an engine generates, around the boundaries that it declares
    prediction.py   which tokens can flip, and how probable that is
    flips.py        which did, and whether that was predicted
    free_run.py     the candidate's own generation beside the truth's, going on after each difference
    divergence.py   how far two distributions are from one another: the figures of --kl-divergence
    bisect.py       the first stage whose own computation is wrong, and the proof by transplant
    dump.py         a folder of one forward pass's stages, read; recorder.py writes it, aprt.py has the APR tools' files
    transplant.py   what such a folder alone says: the oracle is fed with it, stage by stage
    minify.py       one wrong number as a script that needs only NumPy
    attribution.py  which axis of a factorial run is to blame
    verdict.py      what all this amounts to, and what is green
    report.py       all of it as a page for a browser; junit.py as CI servers read it
"""

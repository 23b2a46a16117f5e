"""Write the built-in model's files from its trained weights: ``python -m goldens.make_builtin FOLDER [OUT]``.

FOLDER is what ``train_builtin`` filled. OUT (this folder if left out) receives ``builtin.gguf`` and ``builtin.apr``,
the same tensors in the same bytes: quantised by ``formats/quantizers`` in the mixture by layer of llama.cpp's Q4_K_M,
written by ``formats/gguf_writer`` and ``formats/apr_writer``. The same weights give the same files.
"""

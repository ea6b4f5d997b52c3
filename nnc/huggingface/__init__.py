"""Compressed folders in Hugging Face transformers: `from_pretrained` decodes, `save_pretrained` writes the same bytes again.

A compressed folder has the names that transformers looks for, and config.json says `quant_method: "nnc"`.  transformers reads weights
through `safetensors.safe_open`, tensor by tensor; that name of `transformers.modeling_utils` is replaced by a function that opens
files of nnc with `reading.CompressedFile`, which decodes a tensor when it is asked for, and passes all other files on.  So names,
prefixes, conversions, ties, dtypes and devices are the business of transformers, as for any folder.  The weights of the model are
dense then, and it trains like any other.

    hook.py       registers when transformers is imported, before or after nnc, and imports nothing itself
    dispatch.py   what is replaced in transformers, and for which of its versions
    reading.py    a compressed file in the form of safe_open
    watch.py      which tensors were asked for
    quantizer.py  what config.json's `quant_method` stands for
    original.py   the files that a model came from
    saving.py     whether the weights are still theirs, and the copy
    quiet.py      transformers without its lines
"""

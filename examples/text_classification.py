"""Classify text from sparse rows: which part of Python a docstring is from, here and in scikit-learn, side by side.

The texts are the docstrings of functions, classes and methods of Python's standard library, and the class is the module
that they come from. `TfidfVectorizer` makes sparse rows of them; they are never filled. The strength of the ridge
classifier is chosen by exact leave-one-out, and by folds; `partial_fit` learns from hashed batches, of which it keeps
the moments alone.

    python examples/text_classification.py
"""

import importlib
import inspect
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn import linear_model
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer

from torchridge.estimators import LogisticRegression, RidgeClassifier, RidgeClassifierCV

warnings.filterwarnings("ignore", category=DeprecationWarning)  # of modules that are about to leave Python
MODULES = ("argparse", "ast", "asyncio", "calendar", "codecs", "collections", "csv", "datetime", "decimal", "difflib",
           "email", "fractions", "http", "inspect", "ipaddress", "json", "logging", "mailbox", "math", "pathlib",
           "random", "re", "shutil", "socket", "sqlite3", "statistics", "string", "tarfile", "tkinter", "typing",
           "unittest", "urllib", "xml", "zipfile")  # fmt: skip
INSIDE = ("asyncio.events", "asyncio.streams", "email.message", "email.mime.base", "email.policy", "http.client",
          "http.cookiejar", "http.server", "logging.handlers", "tkinter.ttk", "unittest.case", "unittest.mock",
          "urllib.parse", "urllib.request", "xml.dom.minidom", "xml.etree.ElementTree", "xml.sax.handler")  # fmt: skip


def docstrings(name: str) -> Iterator[str]:
    """Yield the docstrings of a module's own functions and classes, and of the methods of these."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return  # some builds of Python come without tkinter or sqlite3
    family = name.partition(".")[0]
    for thing in vars(module).values():
        home = str(getattr(thing, "__module__", None) or "").lstrip("_").partition(".")[0]
        if home != family or not (inspect.isroutine(thing) or inspect.isclass(thing)):
            continue
        for each in (thing, *(vars(thing).values() if inspect.isclass(thing) else ())):
            text = getattr(each, "__doc__", None)
            if isinstance(text, str) and len(text) > 40:
                yield text


texts: dict[str, str] = {}  # text to label, so that none counts twice
for name in (*MODULES, *INSIDE):
    for text in docstrings(name):
        texts.setdefault(text, name.partition(".")[0])
counts = {label: list(texts.values()).count(label) for label in set(texts.values())}
corpus = [(text, label) for text, label in sorted(texts.items()) if counts[label] >= 60]
np.random.default_rng(0).shuffle(corpus)
words, labels = [text for text, _ in corpus], np.array([label for _, label in corpus])
split = len(words) * 3 // 4

vectorizer = TfidfVectorizer(sublinear_tf=True)
train, test = vectorizer.fit_transform(words[:split]), vectorizer.transform(words[split:])
known, held_out = labels[:split], labels[split:]
print(f"{train.shape[0]} docstrings, {train.shape[1]} words, {len(set(labels))} modules")
# 1646 docstrings, 4337 words, 17 modules (Python 3.11)


def compare(title: str, ours: Any, peer: Any) -> None:
    """Fit both to the same rows; print seconds of processor, held-out accuracy, and how far they are apart."""
    seconds = []
    for model in (ours, peer):
        start = time.process_time()
        model.fit(train, known)
        seconds.append(time.process_time() - start)
    same = float((ours.predict(test) == peer.predict(test)).mean())
    print(f"{title}: {seconds[0]:.2f} s, scikit-learn {seconds[1]:.2f} s")
    print(
        f"    accuracy {ours.score(test, held_out):.3f} and {peer.score(test, held_out):.3f}, same answers {same:.1%}"
    )
    if hasattr(ours, "alpha_"):
        print(f"    alpha {ours.alpha_:g} and {peer.alpha_:g}")


grid = np.logspace(-1, 0.5, 4)
compare("RidgeClassifier", RidgeClassifier(), linear_model.RidgeClassifier(tol=1e-8))
compare("leave-one-out × 4", RidgeClassifierCV(grid), linear_model.RidgeClassifierCV(grid))
compare("3 folds × 4", RidgeClassifierCV(grid, cv=3), linear_model.RidgeClassifierCV(grid, cv=3))
# leave-one-out × 4: accuracy 0.869 and 0.869, same answers 100.0%, alpha 0.316228 and 0.316228
compare("LogisticRegression", LogisticRegression(C=10), linear_model.LogisticRegression(C=10, max_iter=1000))
# LogisticRegression: accuracy 0.871 and 0.871, same answers 100.0%

# Text that never ends: hashed to a fixed number of columns, batch by batch.
hashing, stream = HashingVectorizer(n_features=2**10, alternate_sign=False), RidgeClassifier(alpha=0.3)
for start in range(0, split, 500):
    stop = min(split, start + 500)
    stream.partial_fit(hashing.transform(words[start:stop]), known[start:stop], classes=np.unique(labels))
print(f"streamed, 1024 hashed columns: accuracy {stream.score(hashing.transform(words[split:]), held_out):.3f}")
# streamed, 1024 hashed columns: accuracy 0.812

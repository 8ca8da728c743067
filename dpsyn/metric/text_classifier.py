"""Train on synthetic, test on real: labels of texts, from frozen embeddings or by a fine-tuned encoder."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dpsyn.data import Data
from dpsyn.embedding import Embedding
from dpsyn.errors import UserError, check_packages, first_line, invalid
from dpsyn.marks import PLACE
from dpsyn.metric import (
    Metric,
    batched,
    check_comparable,
    check_real,
    check_settings,
    real_vectors,
    synthetic_vectors,
    texts_of,
)
from dpsyn.networks.hub import check_revision, local_model, model_folder, pinned, quiet_transformers
from dpsyn.networks.logistic import logistic
from dpsyn.networks.runtime import Runtime, take_free_threads, torch_device
from dpsyn.population import Label, Modality, Population, Samples
from dpsyn.validate import choice, number

PER_BATCH = 1024  # texts read and embedded at once
ROUNDS = 1000  # of the solver, at most
Guess = Callable[[Samples], dict[str, np.ndarray]]


@dataclass(frozen=True)
class TextClassifier(Metric):
    """Accuracy and macro F1 on real texts, of every label column and of all columns at once ("joint").

    data: the real data. public: they are public; otherwise the numbers are private.
    network: 'logistic': multinomial logistic regression on vectors of `embedding`, centred and scaled by one number so
        that their mean squared length is 1; inverse_penalty: scikit-learn's C. Or 'encoder': the network of `model` is
        fine-tuned, with the mean of its last layer and a linear layer for each column.
    model: a folder that transformers saved, or the name of one on the hub. revision: there, None: the newest at
        the first use. max_length: tokens that it reads of a text.
    epochs, batch_size, learning_rate (the peak, after a tenth of the steps; AdamW, then linearly to 0), seed: of the
    training. Under bfloat16 autocast on a GPU.
    """

    data: Data
    embedding: Embedding
    public: bool
    network: Literal["logistic", "encoder"]
    inverse_penalty: float
    model: str | None = field(metadata=PLACE)
    max_length: int
    epochs: int
    batch_size: int
    learning_rate: float
    seed: int
    revision: str | None = None
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        check_revision("metric.parts.text_classifier.revision", self.revision)
        check_settings(self, "text_classifier", {"max_length": 1, "epochs": 1, "batch_size": 1, "seed": 0}, self.public)
        for key in ("inverse_penalty", "learning_rate"):
            value = getattr(self, key)
            number(f"metric.parts.text_classifier.{key}", value, "a number above 0", above=0)
        choice("metric.parts.text_classifier.network", self.network, ("logistic", "encoder"))

    def check(self) -> None:
        """Raises UserError without real data, and for an encoder that is neither a folder nor a name on the hub."""
        check_real(self.data)
        if self.network == "encoder":
            check_packages("metric.parts.text_classifier.network", self.network, "torch", "transformers")
            expected = "a folder that is there, or a name such as distilbert/distilroberta-base"
            model_folder("metric.parts.text_classifier.model", self.model, expected)

    @property
    def private(self) -> bool:
        return not self.public

    @property
    def judges(self) -> Sequence[Modality]:
        return ("texts",) if self.network == "encoder" or "texts" in self.embedding.fits else ()

    def reads(self) -> Sequence[Data]:
        return (self.data,)

    def __call__(self, population: Population) -> Mapping[str, float]:
        """{'accuracy_COLUMN', 'f1_COLUMN', ..., 'accuracy_joint', 'f1_joint'}: the last two where columns are more than
        one; {} where all texts have one label. Raises UserError for what are no texts.

        F1 is the mean over the values that real texts have or that are guessed.
        """
        texts_of(population.samples, "text_classifier")
        tasks = columns(self.data.labels)
        if not tasks or not len(population):
            return {}
        guess = self._logistic(population, tasks) if self.network == "logistic" else self._encoder(population, tasks)
        guessed: dict[str, list[np.ndarray]] = {name: [] for name in tasks}
        labels = [np.zeros(0, np.int64)]
        for records in self.data.batches(PER_BATCH):
            if len(records.samples):
                texts_of(records.samples, "text_classifier")
                labels.append(records.labels)
                for name, found in guess(records.samples).items():
                    guessed[name].append(found)
        real = np.concatenate(labels)
        if not len(real):
            raise UserError("metric text_classifier: expected a real text, or more.")
        return {
            f"{kind}_{name}": value
            for name, values in tasks.items()
            for kind, value in _judged(values[real], np.concatenate(guessed[name])).items()
        }

    def _logistic(self, population: Population, tasks: Mapping[str, np.ndarray]) -> Guess:
        vectors = np.asarray(synthetic_vectors(population.samples, self.embedding, PER_BATCH))
        real = real_vectors(self.data, self.embedding, PER_BATCH)
        check_comparable(vectors, real)
        mean = vectors.mean(0)
        scale = float(np.sqrt(np.square(vectors - mean).sum(1).mean())) or 1.0
        fitted = {}
        for name, values in tasks.items():
            wanted = values[population.labels]
            if len(np.unique(wanted)) > 1:
                given = (vectors - mean) / scale
                fitted[name] = logistic(given, wanted, ROUNDS, self.inverse_penalty, self.seed).predict
            else:
                fitted[name] = functools.partial(_always, wanted[0])

        done = 0  # of the real rows, which come in the order of their vectors

        def guess(samples: Samples) -> dict[str, np.ndarray]:
            nonlocal done
            found, done = np.asarray(real[done : done + len(samples)]), done + len(samples)
            return {name: predict((found - mean) / scale) for name, predict in fitted.items()}

        return guess

    def _encoder(self, population: Population, tasks: Mapping[str, np.ndarray]) -> Guess:
        import torch

        take_free_threads()
        device = torch_device(self.runtime)
        with torch.random.fork_rng(range(torch.cuda.device_count()) if device.startswith("cuda") else []):
            torch.manual_seed(self.seed)
            scores = _trained(self, population, tasks, device)

        def guess(samples: Samples) -> dict[str, np.ndarray]:
            parts: dict[str, list[np.ndarray]] = {name: [] for name in tasks}
            with torch.no_grad():
                for some in batched(samples, self.batch_size):  # what fits in training fits here
                    for name, found in scores(some.content).items():
                        parts[name].append(found.argmax(1).cpu().numpy())
            return {name: np.concatenate(found) for name, found in parts.items()}

        return guess


def columns(labels: Sequence[Label]) -> dict[str, np.ndarray]:
    """For every column with more than one value, and for "joint" where there are more such columns than one: int64
    [labels], the number of the value that each label has."""
    tasks = {}
    for name in labels[0]:
        values = list(dict.fromkeys(label[name] for label in labels))
        if len(values) > 1:
            tasks[name] = np.array([values.index(label[name]) for label in labels])
    return tasks | {"joint": np.arange(len(labels))} if len(tasks) > 1 else tasks


def _judged(real: np.ndarray, guessed: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import f1_score

    f1 = f1_score(real, guessed, average="macro", zero_division=0)
    return {"accuracy": float((real == guessed).mean()), "f1": float(f1)}


def _always(value: int, vectors: np.ndarray) -> np.ndarray:
    return np.full(len(vectors), value)


def _trained(part: TextClassifier, population: Population, tasks: Mapping[str, np.ndarray], device: str) -> Any:
    """Texts, object of str [n] -> for every task the scores [n, values], a tensor."""
    import torch

    tokenizer, encoder = load(str(part.model), part.revision)
    encoder.to(device).train()
    width = encoder.config.hidden_size
    heads = torch.nn.ModuleDict(
        {str(k): torch.nn.Linear(width, int(values.max()) + 1) for k, values in enumerate(tasks.values())}
    ).to(device)
    lower = torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=device != "cpu")

    def scores(texts: np.ndarray) -> dict[str, Any]:
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        inputs = tokenizer(clean, truncation=True, max_length=part.max_length, padding=True, return_tensors="pt")
        inputs = {name: values.to(device) for name, values in inputs.items()}
        with lower:
            states = encoder(**inputs).last_hidden_state
        seen = inputs["attention_mask"][:, :, None].to(torch.float32)
        pooled = (states.float() * seen).sum(1) / seen.sum(1).clamp(min=1)
        return {name: head(pooled) for name, head in zip(tasks, heads.values(), strict=True)}

    weights = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=part.learning_rate, weight_decay=0.01)
    steps = part.epochs * -(-len(population) // part.batch_size)
    warm = max(steps // 10, 1)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(steps - warm, 1))
    )
    for _ in range(part.epochs):
        order = torch.randperm(len(population)).numpy()
        for start in range(0, len(order), part.batch_size):
            rows = order[start : start + part.batch_size]
            found = scores(population.samples.content[rows])
            wanted = {
                name: torch.from_numpy(values[population.labels[rows]]).to(device) for name, values in tasks.items()
            }
            loss = sum(torch.nn.functional.cross_entropy(found[name], wanted[name]) for name in tasks)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[union-attr]
            optimizer.step()
            pace.step()
    encoder.eval()
    return scores


def load(model: str, revision: str | None) -> tuple[Any, Any]:
    """Tokenizer and encoder. Raises UserError.

    model: a folder, or OWNER/NAME on the hub.
    revision: a commit, a tag or a branch; None: the newest at the first use.
    """
    commit = pinned("metric.parts.text_classifier.model", model, revision, "Name a folder that transformers saved.")
    path = str(local_model("metric.parts.text_classifier.model", model) or model)
    try:
        import transformers

        with quiet_transformers():
            return (
                transformers.AutoTokenizer.from_pretrained(path, revision=commit),
                transformers.AutoModel.from_pretrained(path, revision=commit).float(),
            )
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        reason = first_line(error)
        do = f"transformers says: {reason}"
        raise invalid("metric.parts.text_classifier.model", model, "an encoder that it can load", do) from None

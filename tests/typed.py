"""mypy compares every part with its contract here. Nothing of it runs."""

from __future__ import annotations

from dpsyn.api import Adopting, Api, LooksUp, Metered, Pinged, Preparing, Queued
from dpsyn.api.avatar import Avatar
from dpsyn.api.chat import Chat
from dpsyn.api.diffusion import Diffusion
from dpsyn.api.draw_text import DrawText
from dpsyn.api.image_endpoint import ImageEndpoint
from dpsyn.api.local_llm import LocalLLM
from dpsyn.api.pool import Pool
from dpsyn.api.stable_diffusion import StableDiffusion
from dpsyn.api.staged import Staged
from dpsyn.api.table import Table as RandomRows
from dpsyn.data import Data, TableData
from dpsyn.data.breast_cancer import BreastCancer
from dpsyn.data.digits import Digits
from dpsyn.data.images import Images
from dpsyn.data.mails import MailRows, Mails
from dpsyn.data.tables import Tables
from dpsyn.data.texts import Texts
from dpsyn.embedding import CodedEmbedding, Embedding, SparseEmbedding, Truncating
from dpsyn.embedding.efficientnet import EfficientNet
from dpsyn.embedding.inception import Inception
from dpsyn.embedding.ngrams import Ngrams
from dpsyn.embedding.patches import Patches
from dpsyn.embedding.pixels import Pixels
from dpsyn.embedding.sentence import Sentence
from dpsyn.embedding.table import Table
from dpsyn.embedding.texts_of_rows import TextsOfRows
from dpsyn.embedding.vision import Vision
from dpsyn.metric import Metric
from dpsyn.metric.classifier import Classifier
from dpsyn.metric.constraints import Constraints
from dpsyn.metric.diversity import Diversity
from dpsyn.metric.frechet import Frechet
from dpsyn.metric.kid import Kid
from dpsyn.metric.lengths import Lengths
from dpsyn.metric.marginals import Marginals
from dpsyn.metric.mauve import Mauve
from dpsyn.metric.overlap import Overlap
from dpsyn.metric.precision_recall import PrecisionRecall
from dpsyn.metric.table_models import TableClassifier, TableRegressor
from dpsyn.metric.text_classifier import TextClassifier
from dpsyn.metric.text_links import TextLinks
from dpsyn.privacy.query import CellCounts, CellScores, EmbeddingSums, LabelCounts, Nearest, PrefixCounts, Query
from dpsyn.schedule import Schedule
from dpsyn.schedule.cells import Cells
from dpsyn.schedule.discover import Discover
from dpsyn.schedule.evolution import Evolution, NoVotes, WithLabelShares
from dpsyn.schedule.rows_then_texts import RowsThenTexts
from dpsyn.schedule.rows_with_texts import RowsWithTexts


def apis(
    avatar: Avatar, chat: Chat, diffusion: Diffusion, draw: DrawText, images: ImageEndpoint, llm: LocalLLM, pool: Pool,
    stable: StableDiffusion, staged: Staged, rows: RandomRows,
) -> tuple[list[Api], list[Metered], list[Queued], list[Pinged], list[Adopting], list[LooksUp]]:  # fmt: skip
    every: list[Api] = [avatar, chat, diffusion, draw, images, llm, pool, stable, staged, rows]
    adopting: list[Adopting] = [chat, diffusion, images, llm, pool, stable]
    return every, [chat, images], [chat, images], [chat, images, staged], adopting, [pool]


def slow_to_begin(pool: Pool) -> list[Preparing]:
    return [pool]


def data(
    cancer: BreastCancer, digits: Digits, images: Images, mails: Mails, rows: MailRows, tables: Tables, texts: Texts
) -> tuple[list[Data], list[TableData]]:
    return [cancer, digits, images, mails, rows, tables, texts], [cancer, rows, tables]


def embeddings(
    efficient: EfficientNet, inception: Inception, ngrams: Ngrams, patches: Patches, pixels: Pixels, sentence: Sentence,
    table: Table, texts: TextsOfRows, rows: RowsWithTexts, vision: Vision,
) -> tuple[list[Embedding], list[Truncating], list[SparseEmbedding], list[CodedEmbedding]]:  # fmt: skip
    every: list[Embedding] = [efficient, inception, ngrams, patches, pixels, sentence, table, texts, rows, vision]
    return every, [sentence, rows], [table], [rows]


def metrics(
    classifier: Classifier, constraints: Constraints, diversity: Diversity, frechet: Frechet, kid: Kid,
    lengths: Lengths, marginals: Marginals, mauve: Mauve, overlap: Overlap, precision: PrecisionRecall,
    tables: TableClassifier, regressor: TableRegressor, texts: TextClassifier, links: TextLinks,
) -> list[Metric]:  # fmt: skip
    some: list[Metric] = [classifier, constraints, diversity, frechet, kid, lengths, marginals, mauve, overlap]
    return [*some, precision, tables, regressor, texts, links]


def queries(
    nearest: Nearest, labels: LabelCounts, counts: CellCounts, scores: CellScores, sums: EmbeddingSums,
    prefixes: PrefixCounts,
) -> list[Query]:  # fmt: skip
    return [nearest, labels, counts, scores, sums, prefixes]


def schedules(
    cells: Cells, discover: Discover, steps: Evolution, none: NoVotes, shares: WithLabelShares, rows: RowsThenTexts
) -> list[Schedule]:
    return [cells, discover, steps, none, shares, rows]

"""Losses and evaluator for SentenceTransformerTrainer, against those of sentence-transformers they stand in for."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import load
from processes import results_of

from matryoshka import Nesting

torch = load("torch")
st = load("sentence_transformers")
evaluation = load("sentence_transformers.sentence_transformer.evaluation")
losses = load("sentence_transformers.sentence_transformer.losses")
modules = load("sentence_transformers.sentence_transformer.modules")
tokenizers = load("tokenizers")
transformers = load("transformers")
ours = load("matryoshka.sentence_transformers")
Evaluator = ours.MatryoshkaInformationRetrievalEvaluator
Loss, Cached = ours.MatryoshkaMultipleNegativesRankingLoss, ours.CachedMatryoshkaMultipleNegativesRankingLoss

# Warnings that torch and its users give about one another.
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")

DIM, SCALE = 7, 12.0
NESTING = Nesting((2, 3, DIM), importance=(2.0, 0.25, 0.5))
WORDS = [f"{kind}{i}" for kind in ("ask", "answer", "wrong") for i in range(6)] + ["the", "a"]
COLUMNS = {
    "anchor": ["ask0", "the ask1", "a ask2", "ask3 the the", "ask4", "ask5 a"],
    "positive": ["the answer0", "answer1", "answer2 a", "answer3", "a the answer4", "answer5"],
    "negative_1": ["wrong0", "wrong1 the", "wrong2", "a wrong3", "wrong4", "wrong5 a a"],
    "negative_2": ["answer1 wrong0", "answer2", "wrong3", "answer4", "answer5 the", "wrong1"],
}


@pytest.fixture
def model() -> Any:
    """A model of few words, whose embeddings are trained; nothing is downloaded."""
    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="the"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return st.SentenceTransformer(modules=[modules.StaticEmbedding(tokenizer, embedding_dim=DIM)], device="cpu")


def features_of(model: Any, n_columns: int) -> list[dict[str, Any]]:
    return [model.preprocess(texts) for texts in list(COLUMNS.values())[:n_columns]]


BOTH_DIRECTIONS = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}


def replaced(model: Any, *, symmetric: bool = False, nesting: Nesting = NESTING, **cached: Any) -> Any:
    """The two losses that are replaced, as one writes them down."""
    kind = losses.CachedMultipleNegativesRankingLoss if cached else losses.MultipleNegativesRankingLoss
    inner = kind(model, scale=SCALE, **(BOTH_DIRECTIONS if symmetric else {}), **cached)
    return losses.MatryoshkaLoss(model, inner, nesting.dims[::-1], nesting.importance[::-1])


def assert_trains_alike(loss: Any, expected: Any, n_columns: int) -> None:
    """Compare the values of two losses and their gradients in the parameters of their models."""
    found = []
    for one in (loss, expected):
        torch.manual_seed(3)
        value = one(features_of(one.model, n_columns), None)
        value = sum(value.values()) if isinstance(value, dict) else value
        value.backward()
        slopes = [parameter.grad for parameter in one.model.parameters() if parameter.grad is not None]
        found.append((value.detach(), slopes))
    assert max(slope.abs().max() for slope in found[1][1]) > 0.1
    torch.testing.assert_close(*found, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n_columns", [2, 3, 4])
def test_loss_and_gradient_are_those_of_the_replaced_losses(model: Any, n_columns: int, symmetric: bool) -> None:
    loss = Loss(model, NESTING, scale=SCALE, symmetric=symmetric)
    assert_trains_alike(loss, replaced(copy.deepcopy(model), symmetric=symmetric), n_columns)


def test_entries_are_the_weighted_losses_of_the_prefixes(model: Any) -> None:
    parts = Loss(model, NESTING, scale=SCALE)(features_of(model, 3), None)
    assert list(parts) == ["dim_2", "dim_3", "dim_7"]
    for (m, importance), part in zip(zip(NESTING, NESTING.importance, strict=True), parts.values(), strict=True):
        anchors, *candidates = [model(features)["sentence_embedding"][:, :m] for features in features_of(model, 3)]
        similarities = st.util.cos_sim(anchors, torch.cat(candidates)) * SCALE
        expected = torch.nn.functional.cross_entropy(similarities, torch.arange(len(anchors)))
        torch.testing.assert_close(part.detach(), importance * expected.detach())


def test_prefix_of_importance_0_counts_and_logs_0(model: Any) -> None:
    parts = Loss(model, Nesting((2, DIM), importance=(0.0, 1.0)))(features_of(model, 2), None)
    alone = Loss(model, (DIM,))(features_of(model, 2), None)
    assert parts["dim_2"] == 0.0
    torch.testing.assert_close(parts["dim_7"], alone["dim_7"])


def test_a_model_that_truncates_when_it_encodes_is_trained_at_its_whole_width(model: Any) -> None:
    model.truncate_dim = 3
    parts = Loss(model, NESTING, scale=SCALE)(features_of(model, 2), None)
    assert list(parts) == ["dim_2", "dim_3", "dim_7"]
    assert model.truncate_dim == 3
    with pytest.warns(UserWarning, match="the model's embeddings with 7"):
        Loss(model, (2, 3))


def test_a_ladder_that_ends_early_warns_and_trains_its_columns_alone(model: Any) -> None:
    ladder = Nesting((2, 5), importance=(2.0, 0.5))
    with pytest.warns(
        UserWarning, match="`nesting` ends with 5, .* with 7: the columns behind 5 are not .*; add 7"
    ) as w:
        loss = Loss(model, ladder, scale=SCALE)
    assert w[0].filename == __file__
    assert_trains_alike(loss, replaced(copy.deepcopy(model), nesting=ladder), 3)
    assert not any(parameter.grad[:, 5:].any() for parameter in model.parameters())


@pytest.mark.parametrize("return_parts", [True, False])
def test_directions_may_be_named_as_in_the_replaced_loss(model: Any, return_parts: bool) -> None:
    loss = Loss(model, NESTING, scale=SCALE, return_parts=return_parts, **BOTH_DIRECTIONS)
    assert loss.symmetric
    assert (loss.directions, loss.partition_mode) == tuple(BOTH_DIRECTIONS.values())
    assert_trains_alike(loss, replaced(copy.deepcopy(model), symmetric=True), 3)
    assert not Loss(model, NESTING, directions=["query_to_doc"], partition_mode="per_direction").symmetric


@pytest.fixture
def transformer(tmp_path: Path) -> Any:
    """A transformer of three layers, without dropout."""
    torch.manual_seed(0)
    path = tmp_path / "bert"
    sizes = {"hidden_size": DIM * 2, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = transformers.BertConfig(vocab_size=len(vocabulary), initializer_range=0.5, **sizes, **rates)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(path)
    words = tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(path)
    first = modules.Transformer(str(path))
    return st.SentenceTransformer(modules=[first, modules.Pooling(DIM * 2)], device="cpu")


def test_adaptive_layers_work_around_the_sum(transformer: Any) -> None:
    """As they do around the losses that are replaced: Matryoshka in two directions, of layers and of widths."""
    ladder = Nesting((3, 2 * DIM), importance=(2.0, 0.5))
    loss = Loss(transformer, ladder, scale=SCALE, return_parts=False)
    other = copy.deepcopy(transformer)
    around = losses.AdaptiveLayerLoss(transformer, loss, n_layers_per_step=-1)
    expected = losses.AdaptiveLayerLoss(other, replaced(other, nesting=ladder), n_layers_per_step=-1, kl_temperature=0)
    around.kl_temperature = 0  # MatryoshkaLoss does not let it see whole embeddings
    assert_trains_alike(around, expected, 3)


def test_the_replaced_loss_works_around_the_sum(model: Any) -> None:
    with pytest.warns(UserWarning, match="not trained"):
        loss = Loss(model, (2, 3), scale=SCALE, return_parts=False)
    around = losses.MatryoshkaLoss(model, loss, [DIM])
    other = copy.deepcopy(model)
    assert_trains_alike(around, replaced(other, nesting=Nesting((2, 3))), 3)


# Gradient caching


@pytest.fixture
def bag() -> Any:
    """A model whose inputs can be cut into pieces, with dropout."""
    torch.manual_seed(0)
    layers = [modules.BoW(WORDS), modules.Dropout(0.2), modules.Dense(len(WORDS), DIM)]
    return st.SentenceTransformer(modules=layers, device="cpu")


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n_columns", [2, 4])
@pytest.mark.parametrize("mini_batch_size", [1, 4, 32])
def test_cached_is_what_it_replaces(bag: Any, n_columns: int, symmetric: bool, mini_batch_size: int) -> None:
    """Dropout included; and without it what the losses without caching are."""
    loss = Cached(bag, NESTING, mini_batch_size=mini_batch_size, scale=SCALE, symmetric=symmetric)
    other = copy.deepcopy(bag)
    expected = replaced(other, symmetric=symmetric, mini_batch_size=mini_batch_size)
    assert_trains_alike(loss, expected, n_columns)
    bag.eval().zero_grad()
    other.eval().zero_grad()
    assert_trains_alike(loss, replaced(other, symmetric=symmetric), n_columns)
    assert_trains_alike(loss, Loss(other, NESTING, scale=SCALE, symmetric=symmetric), n_columns)


def test_cached_cuts_what_transformers_read(transformer: Any) -> None:
    loss = Cached(transformer, (3, 2 * DIM), mini_batch_size=2, scale=SCALE, show_progress_bar=False)
    ladder = Nesting((3, 2 * DIM))
    assert_trains_alike(loss, replaced(copy.deepcopy(transformer), nesting=ladder), 3)


def test_cached_takes_ladders_and_directions_as_the_loss_without_caching(bag: Any) -> None:
    ladder = Nesting((2, 5))
    with pytest.warns(UserWarning, match="`nesting` ends with 5, .* with 7") as caught:
        loss = Cached(bag.eval(), ladder, mini_batch_size=4, scale=SCALE, **BOTH_DIRECTIONS)
    assert caught[0].filename == __file__
    assert_trains_alike(loss, replaced(copy.deepcopy(bag), nesting=ladder, symmetric=True), 3)


def test_cached_gives_a_loss_without_gradients_in_evaluation(bag: Any) -> None:
    with torch.no_grad():
        value = Cached(bag.eval(), NESTING, mini_batch_size=4, scale=SCALE)(features_of(bag, 3), None)
        expected = Loss(bag, NESTING, scale=SCALE, return_parts=False)(features_of(bag, 3), None)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected)


def test_cached_says_what_it_is(bag: Any) -> None:
    loss = Cached(bag, NESTING, mini_batch_size=4, scale=SCALE)
    assert loss.get_config_dict() == Loss(bag, NESTING, scale=SCALE).get_config_dict() | {"mini_batch_size": 4}
    assert "Matryoshka Representation Learning" in loss.citation
    assert "Memory Limited Setup" in loss.citation


def test_trainer_learns_with_caching(bag: Any, tmp_path: Path) -> None:
    loss = Cached(bag, NESTING, mini_batch_size=4, scale=SCALE)
    bag[1].dropout_layer.p = 0.0
    trainer = trainer_of(bag, tmp_path, loss=loss, num_train_epochs=20)
    trainer.train()
    logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1] < 0.5 * logs[0]


@pytest.mark.parametrize("importance", [(2.0, 0.25, 0.5), (0.0, 1.0, 0.0)])
def test_cached_names_the_losses_of_the_prefixes_where_it_is_asked_to(bag: Any, importance: Any) -> None:
    ladder = Nesting(NESTING.dims, importance)
    loss = Cached(bag.eval(), ladder, mini_batch_size=4, scale=SCALE, return_parts=True)
    other = copy.deepcopy(bag)
    assert_trains_alike(loss, Loss(other, ladder, scale=SCALE), 3)
    parts, expected = loss(features_of(bag, 3), None), Loss(other, ladder, scale=SCALE)(features_of(bag, 3), None)
    assert [part.requires_grad for part in parts.values()] == [False, False, True]
    assert list(parts) == list(expected)
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        again = loss(features_of(bag, 3), None)
    assert not any(part.requires_grad for part in again.values())
    torch.testing.assert_close(again, {name: part.detach() for name, part in parts.items()})


def test_trainer_logs_the_losses_of_the_prefixes_with_caching(bag: Any, tmp_path: Path) -> None:
    loss = Cached(bag, NESTING, mini_batch_size=4, scale=SCALE, return_parts=True)
    trainer = trainer_of(bag, tmp_path, loss=loss, num_train_epochs=2)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    for entry in logs:
        assert sum(entry[f"dim_{m}"] for m in NESTING) == pytest.approx(entry["loss"], abs=2e-4)
    assert any("eval_dim_2" in entry for entry in trainer.state.log_history)


def test_cached_refuses_what_cannot_be_cut(model: Any, bag: Any) -> None:
    with pytest.raises(ValueError, match="StaticEmbedding"):
        Cached(model, NESTING)
    with pytest.raises(ValueError, match="`mini_batch_size` must be an integer >= 1, got 0"):
        Cached(bag, NESTING, mini_batch_size=0)
    with pytest.raises(ValueError, match="at least 2 inputs, got 1"):
        Cached(bag, NESTING)(features_of(bag, 1), None)


def test_nothing_of_the_model_is_replaced(model: Any) -> None:
    class Watched(st.SentenceTransformer):
        def __setattr__(self, name: str, value: Any) -> None:
            assert name != "forward"
            super().__setattr__(name, value)

    model.__class__ = Watched
    loss = Loss(model, NESTING)
    sum(loss(features_of(model, 2), None).values()).backward()
    with pytest.raises(AssertionError):
        replaced(model)(features_of(model, 2), None)


def test_no_gradient_is_formed_in_evaluation(model: Any) -> None:
    with torch.no_grad():
        parts = Loss(model, NESTING)(features_of(model, 2), None)
    assert not any(part.requires_grad for part in parts.values())


def trainer_of(model: Any, folder: Path, loss: Any = None, evaluator: Any = None, **options: Any) -> Any:
    dataset = load("datasets").Dataset.from_dict(COLUMNS)
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=6,
        per_device_eval_batch_size=6,
        learning_rate=0.2,
        logging_steps=1,
        eval_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **({"save_strategy": "no"} | options),
    )
    loss = loss or Loss(model, NESTING, scale=SCALE)
    datasets = {"train_dataset": dataset, "eval_dataset": dataset}
    return st.SentenceTransformerTrainer(model, arguments, **datasets, loss=loss, evaluator=evaluator)


def test_trainer_learns_every_prefix_and_logs_its_loss(model: Any, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path, num_train_epochs=60)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 60
    for entry in logs:
        assert sum(entry[f"dim_{m}"] for m in NESTING) == pytest.approx(entry["loss"], abs=2e-4)  # rounded there
    for m in NESTING:
        assert logs[-1][f"dim_{m}"] < 0.3 * logs[0][f"dim_{m}"]
    evaluations = [entry for entry in trainer.state.log_history if "eval_dim_2" in entry]
    assert len(evaluations) == 60
    anchors, positives = (model.encode(COLUMNS[name]) for name in ("anchor", "positive"))
    for m in NESTING:
        found = st.util.cos_sim(anchors[:, :m], positives[:, :m]).argmax(dim=1)
        assert found.tolist() == list(range(6))


def test_trainer_learns_in_bfloat16(model: Any, tmp_path: Path) -> None:
    trainer = trainer_of(model, tmp_path, num_train_epochs=10, bf16=True)
    trainer.train()
    logs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1] < 0.5 * logs[0]


def test_model_card_names_loss_dims_and_paper(model: Any, tmp_path: Path) -> None:
    trainer_of(model, tmp_path, num_train_epochs=1).train()
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "MatryoshkaMultipleNegativesRankingLoss" in card
    assert '"matryoshka_dims": [\n' in card
    assert "Matryoshka Representation Learning" in card
    assert "Contrastive Predictive Coding" in card


def test_config_names_every_option(model: Any) -> None:
    assert Loss(model, NESTING, scale=SCALE, symmetric=True).get_config_dict() == {
        "matryoshka_dims": (2, 3, DIM),
        "matryoshka_weights": (2.0, 0.25, 0.5),
        "scale": SCALE,
        "symmetric": True,
        "gather_across_devices": False,
    }


def work(rank: int, folder: str) -> None:
    """What each of two processes does with its half of the batch."""
    torch.set_num_threads(1)
    rendezvous = Path(folder, "rendezvous").as_uri()
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    own = [array.chunk(2)[rank].clone().requires_grad_() for array in drawn()]
    loss = sum(distributed_loss(gather=True).compute_loss_from_embeddings(own).values())
    loss.backward()
    pieces = [[piece.clone().requires_grad_() for piece in array.detach().split(2)] for array in own]
    cached = distributed_loss(gather=True, kind=Cached).calculate_loss(pieces, with_backward=True)
    torch.testing.assert_close(cached, loss.detach())
    for array, cut in zip(own, pieces, strict=True):
        torch.testing.assert_close(torch.cat([piece.grad for piece in cut]), array.grad)
    torch.save([loss.detach(), *(array.grad for array in own)], Path(folder, f"{rank}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def drawn() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, DIM, generator=generator, dtype=torch.float64) for _ in range(3)]


def distributed_loss(*, gather: bool, kind: Any = Loss) -> Any:
    bag = st.SentenceTransformer(modules=[modules.BoW([f"word{i}" for i in range(DIM)])], device="cpu")
    return kind(bag, NESTING, scale=SCALE, gather_across_devices=gather)


def test_two_processes_that_gather_equal_one(tmp_path: Path) -> None:
    found = results_of(work, tmp_path)
    arrays = [array.requires_grad_() for array in drawn()]
    loss = sum(distributed_loss(gather=False).compute_loss_from_embeddings(arrays).values())
    loss.backward()
    torch.testing.assert_close((found[0][0] + found[1][0]) / 2, loss.detach())
    for array, *of_processes in zip(arrays, *(result[1:] for result in found), strict=True):
        torch.testing.assert_close(torch.cat(of_processes) / 2, array.grad)


@pytest.mark.parametrize(
    ("nesting", "options", "error", "message"),
    [
        ((2, 9), {}, ValueError, "`nesting` must end with the width of the model's embeddings, 7, got 9"),
        ((2, 7), {"directions": "query_to_doc"}, TypeError, "`directions` must be a sequence of names, got str"),
        ((2, 7), {"directions": ()}, ValueError, r"`directions` must be \(.query_to_doc.,\), or .*, got \(\) with"),
        ((2, 7), {"directions": ("doc_to_docs",)}, ValueError, r"`directions\[0\]` must be one of 'query_to_doc', "),
        ((2, 7), BOTH_DIRECTIONS | {"partition_mode": "joint"}, ValueError, "`directions` .* keep MatryoshkaLoss"),
        ((2, 7), {"directions": ("query_to_doc", "doc_to_doc")}, ValueError, "`directions` .* keep MatryoshkaLoss"),
        ((2, 7), {"partition_mode": "both"}, ValueError, "`partition_mode` must be one of 'joint', 'per_direction'"),
        ((7, 2), {}, ValueError, "strictly increasing"),
        ((2, 7), {"scale": 0.0}, ValueError, "`scale` must be finite and in"),
        ((2, 7), {"scale": "20"}, TypeError, "`scale` must be a number"),
    ],
)
def test_bad_options_are_errors_when_the_loss_is_built(
    model: Any, nesting: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Loss(model, nesting, **options)


def test_a_single_column_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match=r"must have columns for anchors and positives, got 1 column"):
        Loss(model, NESTING)(features_of(model, 1), None)


def test_embeddings_cut_by_a_loss_around_are_an_error(model: Any) -> None:
    inner = Loss(model, NESTING, return_parts=False)
    around = losses.MatryoshkaLoss(model, inner, [DIM // 2])
    with pytest.raises(ValueError, match=rf"the {DIM} columns of the nesting, got {DIM // 2}; a MatryoshkaLoss around"):
        around(features_of(model, 2), None)


# Evaluation

CORPUS = {f"d{i}": text for i, text in enumerate(COLUMNS["positive"] + COLUMNS["negative_1"])}
QUERIES = {f"q{i}": text for i, text in enumerate([*COLUMNS["anchor"], "the a", "ask1 ask2"])}
RELEVANT = {"q0": {"d0"}, "q1": {"d1", "d7", "d3"}, "q2": {"d2"}, "q4": {"d4", "d11"}, "q5": set(), "q7": {"d1", "d2"},
            "elsewhere": {"d0"}}  # fmt: skip
CUTOFFS = ("ndcg@3", "mrr@10", "map@4", "map@100", "recall@3", "precision@100", "accuracy@1")


def by_width(model: Any, name: str = "") -> dict[str, float]:
    """What evaluators of sentence-transformers give that encode anew for each width."""
    found = {}
    for m in NESTING:
        counts = {"mrr_at_k": [10], "ndcg_at_k": [3], "accuracy_at_k": [1], "map_at_k": [4, 100]}
        counts["precision_recall_at_k"] = [3, 100]
        one = evaluation.InformationRetrievalEvaluator(QUERIES, CORPUS, RELEVANT, truncate_dim=m, **counts)
        scores = {key.partition("_")[::2]: value for key, value in one(model).items()}
        found |= {f"{name}dim_{m}_{of}_{measure}": value for (of, measure), value in scores.items()}
    return found


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
def test_evaluator_gives_what_an_evaluator_for_each_width_gives(model: Any, similarity: str) -> None:
    model.similarity_fn_name = similarity
    model.truncate_dim = 2
    evaluator = Evaluator(QUERIES, CORPUS, RELEVANT, NESTING, measures=CUTOFFS)
    found = evaluator(model)
    expected = by_width(model)
    assert list(found) == [f"dim_{m}_{similarity}_{measure}" for m in NESTING for measure in CUTOFFS]
    assert found == pytest.approx({name: expected[name] for name in found}, rel=1e-5)
    assert len(set(found.values())) > 10
    assert evaluator.primary_metric == f"dim_7_{similarity}_ndcg@3"
    assert model.truncate_dim == 2
    assert evaluator.evaluation.n_queries == 5
    assert evaluator.evaluation.scores[3]["map@4"] == found[f"dim_3_{similarity}_map@4"]
    model.similarity_fn_name = "dot" if similarity == "cosine" else "cosine"
    assert evaluator.primary_metric not in evaluator(model)
    assert evaluator.primary_metric == f"dim_7_{model.similarity_fn_name}_ndcg@3"


def test_evaluator_encodes_once_and_puts_prompts_before_texts(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for kind in ("encode_query", "encode_document"):
        whole = getattr(model, kind)

        def encode(texts: Any, kind: str = kind, whole: Any = whole, **options: Any) -> Any:
            asked.append((kind, len(texts), options["prompt"], options["batch_size"]))
            return whole(texts, **options)

        monkeypatch.setattr(model, kind, encode)
    prompts = {"query_prompt": "ask3 ", "corpus_prompt": "wrong2 the "}
    evaluator = Evaluator(QUERIES, CORPUS, RELEVANT, NESTING, batch_size=5, **prompts)
    with_prompts = evaluator(model)
    assert asked == [("encode_query", 5, "ask3 ", 5), ("encode_document", 12, "wrong2 the ", 5)]
    assert evaluator.get_config_dict() == {"matryoshka_dims": (2, 3, DIM), **prompts}
    queries = {key: f"ask3 {text}" for key, text in QUERIES.items()}
    corpus = {key: f"wrong2 the {text}" for key, text in CORPUS.items()}
    assert Evaluator(queries, corpus, RELEVANT, NESTING)(model) == pytest.approx(with_prompts, rel=1e-5)


def test_evaluator_takes_grades_as_benchmarks_give_them(model: Any) -> None:
    graded = {"q0": {"d0": 1, "d6": 3, "d3": 0}, "q1": {"d1": 2}, "q2": {"d2": 0}}
    evaluator = Evaluator(QUERIES, CORPUS, graded, (2, DIM), measures=["ndcg@3", "recall@12"])
    found = evaluator(model)
    queries, rows = (model.encode(list(texts.values())) for texts in (QUERIES, CORPUS))
    for m in (2, DIM):
        ratios = []
        for query, grades in (("q0", [1, 0, 0, 0, 0, 0, 3]), ("q1", [0, 2])):
            row = list(QUERIES).index(query)
            order = st.util.cos_sim(queries[row, :m], rows[:, :m])[0].argsort(descending=True, stable=True)
            grades = grades + [0] * (12 - len(grades))
            gains = [grades[i] for i in order.tolist()]
            ideal = sorted(grades, reverse=True)
            ratios.append(evaluator_dcg(gains) / evaluator_dcg(ideal))
        assert found[f"dim_{m}_cosine_ndcg@3"] == pytest.approx(sum(ratios) / 2)
        assert found[f"dim_{m}_cosine_recall@12"] == 1.0


def evaluator_dcg(gains: list[int]) -> float:
    return float(evaluation.InformationRetrievalEvaluator.compute_dcg_at_k(gains, 3))


def test_trainer_logs_every_width_and_keeps_the_best_model(model: Any, tmp_path: Path) -> None:
    evaluator = Evaluator(QUERIES, CORPUS, RELEVANT, NESTING, name="toy")
    best = {"metric_for_best_model": "eval_toy_dim_2_cosine_ndcg@10", "load_best_model_at_end": True}
    trainer = trainer_of(model, tmp_path, evaluator=evaluator, num_train_epochs=8, save_strategy="best", **best)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "eval_toy_dim_2_cosine_ndcg@10" in entry]
    assert len(logs) == 8
    assert {f"eval_toy_dim_{m}_cosine_map@100" for m in NESTING} <= set(logs[0])
    assert logs[-1]["eval_toy_dim_7_cosine_ndcg@10"] > logs[0]["eval_toy_dim_7_cosine_ndcg@10"]
    assert evaluator.primary_metric == "toy_dim_7_cosine_ndcg@10"
    now = evaluator(trainer.model)
    assert now["toy_dim_2_cosine_ndcg@10"] == pytest.approx(trainer.state.best_metric)
    assert trainer.state.best_metric == max(entry["eval_toy_dim_2_cosine_ndcg@10"] for entry in logs)
    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "type: dim_2_cosine_ndcg@10" in card
    assert "task:\n      type: information-retrieval" in card
    assert "**dim_7_cosine_ndcg@10**" in card


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((list(QUERIES), CORPUS, RELEVANT, (2,)), {}, TypeError, "`queries` must be a dict by id, got list"),
        (
            (QUERIES, CORPUS, {"q0": "d0"}, (2,)),
            {},
            TypeError,
            "`relevant_docs` must hold sets or dicts of ids, got str",
        ),
        (
            (QUERIES, CORPUS, {"q0": {"d0": -1}}, (2,)),
            {},
            ValueError,
            "`relevant_docs` must be an integer >= 0, got -1",
        ),
        (
            (QUERIES, CORPUS, {"q0": {"d0", "e"}}, (2,)),
            {},
            ValueError,
            "`relevant_docs` must name .* got 1 others; add",
        ),
        (
            (QUERIES, CORPUS, {"q0": {"d0": 0}}, (2,)),
            {},
            ValueError,
            "`relevant_docs` must name a document for at least",
        ),
        ((QUERIES, CORPUS, RELEVANT, (7, 2)), {}, ValueError, "`dims` must be positive and strictly increasing"),
        ((QUERIES, CORPUS, RELEVANT, (2,)), {"measures": ["ndcg"]}, ValueError, r"`measures\[0\]` must be one of"),
        ((QUERIES, CORPUS, RELEVANT, (2,)), {"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
    ],
)
def test_bad_evaluators_are_errors_when_they_are_built(
    arguments: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Evaluator(*arguments, **options)


def test_models_that_do_not_fit_are_errors(model: Any) -> None:
    with pytest.raises(ValueError, match=r"`dims` must lie within \[1, 7\]"):
        Evaluator(QUERIES, CORPUS, RELEVANT, (2, 8))(model)
    model.similarity_fn_name = "manhattan"
    with pytest.raises(ValueError, match="`model` must compare by one of cosine, dot, euclidean, got 'manhattan'"):
        Evaluator(QUERIES, CORPUS, RELEVANT, (2,))(model)


@pytest.mark.parametrize("missing", ["torch", "sentence_transformers"])
def test_what_is_missing_is_named_with_the_extra_that_brings_it(missing: str) -> None:
    there = "sys.modules['torch'] = types.ModuleType('torch')"  # which need not be loaded to say what is missing
    code = f"import sys, types; {there}; sys.modules[{missing!r}] = None; import matryoshka.sentence_transformers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"ImportError: `matryoshka.sentence_transformers` needs {missing}, which is not installed")
    assert "[sentence-transformers]" in error

"""The loss for SentenceTransformerTrainer, against the two losses of sentence-transformers that it stands in for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from conftest import load

from matryoshka import Nesting

torch = load("torch")
st = load("sentence_transformers")
losses = load("sentence_transformers.sentence_transformer.losses")
modules = load("sentence_transformers.sentence_transformer.modules")
tokenizers = load("tokenizers")
Loss = load("matryoshka.sentence_transformers").MatryoshkaMultipleNegativesRankingLoss

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


def replaced(model: Any, *, symmetric: bool = False) -> Any:
    """The two losses that are replaced, as one writes them down."""
    options: dict[str, Any] = {}
    if symmetric:
        options = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    inner = losses.MultipleNegativesRankingLoss(model, scale=SCALE, **options)
    return losses.MatryoshkaLoss(model, inner, NESTING.dims[::-1], NESTING.importance[::-1])


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("n_columns", [2, 3, 4])
def test_loss_and_gradient_are_those_of_the_replaced_losses(model: Any, n_columns: int, symmetric: bool) -> None:
    other = copy.deepcopy(model)
    expected = replaced(other, symmetric=symmetric)(features_of(other, n_columns), None)
    expected.backward()
    parts = Loss(model, NESTING, scale=SCALE, symmetric=symmetric)(features_of(model, n_columns), None)
    loss = sum(parts.values())
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert theirs.grad.abs().max() > 0.1
        torch.testing.assert_close(ours.grad, theirs.grad)


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
    with pytest.raises(ValueError, match="width of the model's embeddings, 7, got 3; make 7 its last width"):
        Loss(model, (2, 3))


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


def trainer_of(model: Any, folder: Path, **options: Any) -> Any:
    dataset = load("datasets").Dataset.from_dict(COLUMNS)
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=6,
        per_device_eval_batch_size=6,
        learning_rate=0.2,
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    loss = Loss(model, NESTING, scale=SCALE)
    return st.SentenceTransformerTrainer(model, arguments, train_dataset=dataset, eval_dataset=dataset, loss=loss)


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
    torch.save([loss.detach(), *(array.grad for array in own)], Path(folder, f"{rank}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def drawn() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6, DIM, generator=generator, dtype=torch.float64) for _ in range(3)]


def distributed_loss(*, gather: bool) -> Any:
    bag = st.SentenceTransformer(modules=[modules.BoW([f"word{i}" for i in range(DIM)])], device="cpu")
    return Loss(bag, NESTING, scale=SCALE, gather_across_devices=gather)


def test_two_processes_that_gather_equal_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
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
        ((2, 3), {}, ValueError, "`nesting` must end with the width of the model's embeddings, 7, got 3"),
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

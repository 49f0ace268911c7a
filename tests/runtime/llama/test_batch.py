"""Many sequences at once: each is what it would be alone, whatever runs beside it and whenever it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import llama_cpp
import models
import numpy as np
import pytest

from tinylora_edge import MicroVector, VectorError
from tinylora_edge.errors import TinyLoraError
from tinylora_edge.runtime import TinyLoraLlama
from tinylora_edge.runtime.llama.batch import Batch, Generation
from tinylora_edge.runtime.llama.lane import common_prefix
from tinylora_edge.runtime.llama.lora import LoraImage, free
from tinylora_edge.runtime.llama.prompts import encode
from tinylora_edge.runtime.llama.sampling import sample
from tinylora_edge.tasks import Sample

PROMPTS = [list(text.encode()) for text in ("one two three", "one two four", "one", "quite another text")]
LIMIT = 7
END = 257


@pytest.fixture
def llm(load: Callable[..., TinyLoraLlama], tiny_bundle: str) -> TinyLoraLlama:
    # float32 KV: in float16 the order of summation shows, and it is not the same for a batch
    return load(tiny_bundle, type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)


@pytest.fixture
def batch(llm: TinyLoraLlama) -> Iterator[Batch]:
    with Batch(llm, n_ctx_seq=40, sequences=4, n_threads=1) as opened:
        yield opened


def test_an_attached_lora_stands_in_for_a_vector(llm: TinyLoraLlama, batch: Batch) -> None:
    """A LoRA of the same change as a vector scores the same, and a swap takes it out again."""
    basis, vector = llm.basis, MicroVector.random(llm.basis, 1.0, seed=2)
    r = basis.R(vector)
    pairs = {m: (basis.a[i], np.asarray(basis.b[i], np.float32) @ r[i]) for i, m in enumerate(basis.modules)}
    given = [[[7, 8, END]], [[9]], [[5, 5]], [[END]]]

    def scores() -> np.ndarray:
        return np.concatenate([row for (row,) in batch.score(PROMPTS, given)])

    plain = scores()
    batch.swap(vector)
    expected = scores()
    adapter = LoraImage(basis.architecture, pairs).load(llm.model)
    batch.attach(adapter)
    assert batch.vector is None
    np.testing.assert_allclose(scores(), expected, atol=1e-4)
    assert np.abs(expected - plain).max() > 0.1
    batch.swap(None)
    free(adapter)
    np.testing.assert_array_equal(scores(), plain)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def expected(llm: TinyLoraLlama, generation: Generation, temperature: float) -> np.ndarray:
    """Log-probabilities of the tokens by one evaluation of the whole sequence."""
    prompt = PROMPTS[generation.prompt]
    rows = models.llama_logits(llm, [*prompt, *generation.tokens.tolist()])[len(prompt) - 1 : -1]
    return log_softmax(rows / (temperature or 1.0))[np.arange(len(generation.tokens)), generation.tokens]


@pytest.mark.parametrize("norm", [0.0, 0.5])
def test_greedy_is_what_the_model_says_alone(llm: TinyLoraLlama, batch: Batch, norm: float) -> None:
    vector = MicroVector.random(llm.basis, norm, seed=1) if norm else None
    batch.swap(vector)
    assert batch.vector == vector
    found = batch.generate(PROMPTS, max_tokens=LIMIT)
    if vector is not None:
        llm.swap(vector)
    for index, generation in enumerate(found):
        alone = models.llama_greedy(llm, PROMPTS[index], LIMIT)
        alone = alone[: alone.index(END) + 1] if END in alone else alone
        assert generation.prompt == index
        assert generation.tokens.tolist() == alone
        np.testing.assert_allclose(generation.logprobs, expected(llm, generation, 0.0), atol=2e-4)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 3.0])
def test_logprobs_are_exact_at_the_sampling_temperature(
    llm: TinyLoraLlama, batch: Batch, temperature: float
) -> None:
    found = batch.generate(PROMPTS, samples=3, max_tokens=LIMIT, temperature=temperature, seed=5)
    assert [g.prompt for g in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for generation in found:
        assert generation.ended == (generation.tokens[-1] == END)
        assert generation.ended or len(generation.tokens) == LIMIT
        np.testing.assert_allclose(generation.logprobs, expected(llm, generation, temperature), atol=5e-4)


def test_the_seed_decides(batch: Batch) -> None:
    def run(seed: int) -> list[list[int]]:
        found = batch.generate(PROMPTS, samples=2, max_tokens=LIMIT, temperature=3.0, seed=seed)
        return [g.tokens.tolist() for g in found]

    first = run(1)
    assert run(2) != first
    assert run(1) == first


@pytest.mark.parametrize("cells", [18 + LIMIT, 40, 60, 256])
def test_few_cells_only_mean_fewer_at_the_same_time(llm: TinyLoraLlama, cells: int) -> None:
    """What samples of a prompt share is counted once, and comes back when the last of them is done."""
    with Batch(llm, n_ctx_seq=40, sequences=4, n_threads=1) as batch:
        whole = batch.generate(PROMPTS, samples=3, max_tokens=LIMIT)
        (lane,) = batch._lanes
        lane.n_ctx = cells  # llama.cpp rounds up to 256
        tight = batch.generate(PROMPTS, samples=3, max_tokens=LIMIT)
    assert [g.tokens.tolist() for g in tight] == [g.tokens.tolist() for g in whole]


def test_few_cells_are_enough_for_any_prompts(llm: TinyLoraLlama) -> None:
    """32 prompts that share nothing need more cells than there are: none may fail for it."""
    prompts = [[i, *range(40, 80)] for i in range(1, 33)]
    with Batch(llm, n_ctx_seq=7, sequences=32, n_threads=1) as batch:
        found = batch.generate(prompts, samples=2, max_tokens=LIMIT, temperature=1.0)
    assert [g.prompt for g in found] == [i for i in range(32) for _ in range(2)]


def test_bad_prompts_are_refused_before_anything_runs(batch: Batch) -> None:
    with pytest.raises(VectorError, match="prompt 1 is empty"):
        batch.generate([[1], []], max_tokens=2)
    with pytest.raises(VectorError, match=r"prompt 0 has 250 tokens.* 7 more.* 256 cells.*raise n_ctx_seq"):
        batch.generate([[1] * 250], max_tokens=7)
    assert batch.generate([], max_tokens=2) == []


COMPLETIONS = [
    [[65, 66, 67], [65], list(range(40, 70))],
    [[END]],
    [],
    [list(range(100, 103)), list(range(30, 130)), [7, 7]],
]


def scored(llm: TinyLoraLlama, temperature: float) -> list[list[np.ndarray]]:
    """Log-probabilities of `COMPLETIONS` by one evaluation of each whole sequence."""
    return [
        [
            log_softmax(models.llama_logits(llm, [*prompt, *tokens])[len(prompt) - 1 : -1] / temperature)[
                np.arange(len(tokens)), tokens
            ]
            for tokens in found
        ]
        for prompt, found in zip(PROMPTS, COMPLETIONS, strict=True)
    ]


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize(("sequences", "threads"), [(2, 1), (5, 1), (16, 2)])
def test_given_completions_are_scored_exactly(
    llm: TinyLoraLlama, temperature: float, sequences: int, threads: int
) -> None:
    vector = MicroVector.random(llm.basis, 0.5, seed=1)
    with Batch(llm, n_ctx_seq=130, sequences=sequences, n_threads=threads) as batch:
        batch.swap(vector)
        found = batch.score(PROMPTS, COMPLETIONS, temperature=temperature)
    llm.swap(vector)
    for got, wanted in zip(found, scored(llm, temperature), strict=True):
        assert len(got) == len(wanted)
        for a, b in zip(got, wanted, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_allclose(a, b, atol=5e-4)


def test_scores_are_those_of_the_tokens_that_were_drawn(batch: Batch) -> None:
    drawn = batch.generate(PROMPTS, samples=3, max_tokens=LIMIT, temperature=0.8, seed=2)
    given = [[g.tokens.tolist() for g in drawn if g.prompt == i] for i in range(len(PROMPTS))]
    found = [row for rows in batch.score(PROMPTS, given, temperature=0.8) for row in rows]
    for generation, row in zip(drawn, found, strict=True):
        np.testing.assert_allclose(row, generation.logprobs, atol=5e-4)


def test_other_tokens_are_scored_where_a_completion_stands(llm: TinyLoraLlama, batch: Batch) -> None:
    """What a completion's place could hold: the likeliest tokens of each, with their log-probabilities."""
    vector = MicroVector.random(llm.basis, 0.5, seed=1)
    batch.swap(vector)
    likeliest = batch.likeliest(PROMPTS, COMPLETIONS, 9)
    among = [[tokens for tokens, _ in each] for each in likeliest]
    found = batch.score(PROMPTS, COMPLETIONS, among=among)
    for each, rows in zip(likeliest, found, strict=True):
        for (_, known), row in zip(each, rows, strict=True):
            np.testing.assert_allclose(known, row, atol=5e-4)
    llm.swap(vector)
    for prompt, completions, chosen, rows in zip(PROMPTS, COMPLETIONS, among, found, strict=True):
        for completion, tokens, row in zip(completions, chosen, rows, strict=True):
            logits = models.llama_logits(llm, [*prompt, *completion])[len(prompt) - 1 : -1]
            wanted = log_softmax(logits.astype(np.float64))
            assert (tokens.shape, tokens.dtype) == ((len(completion), 9), np.int32)
            np.testing.assert_allclose(row, np.take_along_axis(wanted, tokens, 1), atol=5e-4)
            np.testing.assert_allclose(np.sort(row), np.sort(wanted)[:, -9:], atol=5e-4)


def test_few_cells_score_the_same(llm: TinyLoraLlama) -> None:
    with Batch(llm, n_ctx_seq=130, sequences=4, n_threads=1) as batch:
        whole = batch.score(PROMPTS, COMPLETIONS)
        (lane,) = batch._lanes
        lane.n_ctx = 120
        tight = batch.score(PROMPTS, COMPLETIONS)
    for a, b in zip(whole, tight, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, atol=5e-4)


def test_what_cannot_be_scored_is_refused(batch: Batch) -> None:
    for prompts, completions, temperature, message in (
        ([[1]], [], 1.0, "1 prompts need as many lists of completions, not 0"),
        ([[1]], [[[2], []]], 1.0, "completion 1 of prompt 0 is empty"),
        ([[1], []], [[[2]], [[2]]], 1.0, "prompt 1 is empty"),
        ([[1], [1] * 250], [[[2]], [[2] * 7]], 1.0, r"prompt 1 has 250 tokens.* 7 more .* 256 cells"),
        ([[1]], [[[2]]], 0.0, "above 0, not at 0"),
    ):
        with pytest.raises(VectorError, match=message):
            batch.score(prompts, completions, temperature=temperature)
    for among in ([], [[]], [[np.zeros((2, 3), np.int32)]]):
        with pytest.raises(VectorError, match="as many rows of other tokens"):
            batch.score([[1]], [[[2]]], among=among)
    assert batch.score([], []) == []
    assert batch.score([[1]], [[]]) == [[]]


def test_the_models_own_vector_stays(llm: TinyLoraLlama, batch: Batch) -> None:
    own = MicroVector.random(llm.basis, 0.5, seed=2)
    llm.swap(own)
    before = models.llama_logits(llm, PROMPTS[0])
    batch.swap(MicroVector.random(llm.basis, 0.5, seed=3))
    batch.generate(PROMPTS, max_tokens=LIMIT)
    assert llm.vector == own
    assert batch.vector != own
    np.testing.assert_array_equal(models.llama_logits(llm, PROMPTS[0]), before)


def test_a_refused_vector_leaves_the_one_before(llm: TinyLoraLlama, batch: Batch) -> None:
    vector = MicroVector.random(llm.basis, 0.5, seed=2)
    batch.swap(vector)
    with pytest.raises(VectorError):
        batch.swap(MicroVector(np.ones((1, 2))))
    with pytest.raises(VectorError, match="takes a MicroVector, not bytes"):
        batch.swap(vector.to_bytes(llm.basis))  # whoever has bytes has a policy to check them by
    assert batch.vector == vector


def test_closed_is_closed(llm: TinyLoraLlama) -> None:
    batch = Batch(llm, n_ctx_seq=40, sequences=2, n_threads=1)
    batch.close()
    batch.close()
    assert batch.vector is None
    for use in (
        lambda: batch.swap(None),
        lambda: batch.generate(PROMPTS, max_tokens=2),
        lambda: batch.score(PROMPTS, COMPLETIONS),
    ):
        with pytest.raises(TinyLoraError, match="closed"):
            use()


@pytest.mark.parametrize(("prompts", "samples"), [(PROMPTS, 9), (PROMPTS[:1], 3), (PROMPTS[:1], 1)])
def test_lanes_change_nothing(llm: TinyLoraLlama, prompts: list[list[int]], samples: int) -> None:
    """A sequence has random numbers of its own: where it runs, and beside what, does not matter."""
    vector = MicroVector.random(llm.basis, 0.5, seed=1)
    found = []
    for threads, lanes in ((1, 1), (2, 2), (3, 2)):
        with Batch(llm, n_ctx_seq=40, sequences=16, n_threads=threads) as batch:
            assert len(batch._lanes) == lanes
            batch.swap(vector)
            drawn = batch.generate(prompts, samples=samples, max_tokens=LIMIT, temperature=1.5, seed=(3, 1))
        assert [g.prompt for g in drawn] == [i for i in range(len(prompts)) for _ in range(samples)]
        found.append([g.tokens.tolist() for g in drawn])
    assert found[0] == found[1] == found[2]
    assert samples == 1 or len({tuple(tokens) for tokens in found[0]}) > 1


def test_what_fails_in_one_lane_stops_the_others(llm: TinyLoraLlama) -> None:
    with Batch(llm, n_ctx_seq=40, sequences=16, n_threads=2) as batch:
        whole = batch.generate(PROMPTS, samples=2, max_tokens=LIMIT)
        other, failing = batch._lanes
        n_ctx, failing.n_ctx = failing.n_ctx, 10**6  # promises cells that llama.cpp does not have
        prompts = [PROMPTS[0], *([i % 250 for i in range(k, k + 200)] for k in range(100))]
        with pytest.raises(TinyLoraError, match="KV cache is full"):
            batch.generate([*prompts[:1] * 200, *prompts[1:]], samples=1, max_tokens=30)
        failing.n_ctx = n_ctx
        assert not other.stop
        again = batch.generate(PROMPTS, samples=2, max_tokens=LIMIT)
    assert [g.tokens.tolist() for g in again] == [g.tokens.tolist() for g in whole]


def test_samples_follow_the_distribution() -> None:
    rng = np.random.default_rng(0)
    logits = np.tile(np.array([0.0, 1.0, 2.0, -np.inf], np.float32), (20_000, 1))
    tokens, logprobs = sample(logits, 0.7, rng.random(len(logits)))
    probabilities = np.exp(log_softmax(logits[0] / 0.7))
    counts = np.bincount(tokens, minlength=4) / len(tokens)
    assert counts[3] == 0
    np.testing.assert_allclose(counts, probabilities, atol=0.015)  # 4 standard deviations
    np.testing.assert_allclose(logprobs, np.log(probabilities[tokens]), atol=1e-5)


@pytest.mark.parametrize("width", [1, 5, 256, 257, 1000, 49_152])
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(width: int) -> None:
    rng = np.random.default_rng(width)
    logits = (rng.normal(size=(300, width)) * 4).astype(np.float32)
    logits[:, rng.random(width) < 0.3] = -np.inf  # weights of exactly 0, at the ends too
    logits[:, width // 2] = 0.0
    uniform = rng.random(300)
    uniform[:3] = 0.0, np.nextafter(1, 0), 1.0  # not even 1 may draw what has no weight
    tokens, logprobs = sample(logits, 0.5, uniform)
    p = np.exp(log_softmax(logits.astype(np.float64) / 0.5))
    at = np.arange(300)
    assert (p[at, tokens] > 0).all()
    upper = np.cumsum(p, axis=1)[at, tokens]
    assert (uniform <= upper + 1e-6).all()
    assert (uniform >= upper - p[at, tokens] - 1e-6).all()
    np.testing.assert_allclose(logprobs, np.log(p[at, tokens]), atol=2e-5)


def test_each_lane_has_a_vector_of_its_own(llm: TinyLoraLlama) -> None:
    """Whatever number of vectors: each answers as if it were alone, and the batch's own one stays."""
    samples = [Sample(text) for text in ("one two three", "one two four", "one")]
    vectors = [MicroVector.random(llm.basis, 0.5, seed=1), None, MicroVector.random(llm.basis, 0.5, seed=2)]
    own = MicroVector.random(llm.basis, 0.5, seed=3)
    with Batch(llm, n_ctx_seq=40, sequences=16, n_threads=2) as batch:
        assert len(batch._lanes) == 2
        batch.swap(own)
        before = batch.answer(samples, max_tokens=LIMIT)
        for temperature in (0.0, 1.5):
            options = {"max_tokens": LIMIT, "temperature": temperature, "seed": 4}
            found = batch.answer_each(vectors, samples, **options)
            assert len({tuple(a.text for a in answers) for answers in found}) == 3
            for vector, answers in zip(vectors, found, strict=True):
                batch.swap(vector)
                assert batch.answer(samples, **options) == answers
            batch.swap(own)
        assert batch.answer(samples, max_tokens=LIMIT) == before
        with pytest.raises(VectorError):
            batch.answer_each([vectors[0], MicroVector(np.zeros((99, 1), np.float32))], samples, max_tokens=2)
        assert batch.vector == own
        assert batch.answer(samples, max_tokens=LIMIT) == before


def test_each_lane_scores_under_a_vector_of_its_own(llm: TinyLoraLlama) -> None:
    """Whatever number of vectors: each scores as if it were alone, and the batch's own one stays."""
    vectors = [MicroVector.random(llm.basis, 0.5, seed=1), None, MicroVector.random(llm.basis, 0.5, seed=2)]
    own = MicroVector.random(llm.basis, 0.5, seed=3)
    prompt, answers = PROMPTS[0], COMPLETIONS[0]
    with Batch(llm, n_ctx_seq=130, sequences=4, n_threads=2, lanes=2) as batch:
        batch.swap(own)
        (before,) = batch.score([prompt], [answers])
        found = batch.score_under(vectors, prompt, answers, temperature=0.7)
        assert len({rows[0].tobytes() for rows in found}) == 3
        for vector, rows in zip(vectors, found, strict=True):
            batch.swap(vector)
            (alone,) = batch.score([prompt], [answers], temperature=0.7)
            for row, wanted in zip(rows, alone, strict=True):
                np.testing.assert_allclose(row, wanted, atol=5e-4)
        batch.swap(own)
        unfit = MicroVector(np.zeros((99, 1), np.float32))
        for bad in (([unfit], prompt, answers), ([own, None, unfit], prompt, answers), ([None], [], answers)):
            with pytest.raises(VectorError):
                batch.score_under(*bad)
        assert batch.score_under([], prompt, answers) == []
        assert batch.vector == own
        for row, wanted in zip(batch.score([prompt], [answers])[0], before, strict=True):
            np.testing.assert_array_equal(row, wanted)


def test_few_lanes_share_the_cores(llm: TinyLoraLlama) -> None:
    def threads() -> list[int]:
        return [llama_cpp.llama_n_threads(lane.context) for lane in batch._lanes]

    with Batch(llm, n_ctx_seq=40, sequences=4, n_threads=5, lanes=2) as batch:
        batch.generate([[65]], samples=1, max_tokens=2)
        assert threads()[0] == 5
        batch.generate([[65]], samples=2, max_tokens=2)
        assert threads() == [2, 2]
        batch.score_under([None], [65], [[66]])
        assert threads()[0] == 5


def test_tokens_are_counted(llm: TinyLoraLlama) -> None:
    """What two vectors evaluate: the prompts, what these share once a vector, and the answers."""
    samples = [Sample("one two three"), Sample("one two four")]
    with Batch(llm, n_ctx_seq=40, sequences=4, n_threads=1) as batch:
        found = batch.answer_each([None, None], samples, max_tokens=LIMIT)
        # The last token of an answer is drawn, and nothing is asked about what follows it.
        answers = sum(answer.tokens - 1 for row in found for answer in row)
        prompts = [encode(llm, sample).tolist() for sample in samples]
        shared = common_prefix(prompts)
        assert shared >= len("one two ")
        assert batch.evaluated == answers + 2 * (sum(map(len, prompts)) - shared)

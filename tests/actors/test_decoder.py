"""The generator in torch on the embedded base model, beside plain forwards of the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from actors import exporting
from actors.canaries import make_canaries, without_media
from actors.decoder import HuggingFaceGenerator
from actors.generator import Generator
from actors.holder import Decoding
from actors.proof import tensor_digest
from pipelines.data.glyphs import GlyphsSource
from pipelines.decoding import Ability, Contrast, Decoder, FromReference, Grounded, Mixture
from pipelines.requirements import VLLM
from pipelines.settings import EngineSettings
from pipelines.types import Op, WeightVersion
from pipelines.worlds.glyphs import BASE_MODEL

SOURCE = GlyphsSource(count=8, seed=3)
PROMPTS = [SOURCE.prompt(row) for _, row in SOURCE.rows()]


class Bench:
    """A started generator at version 0, and an event loop to call it in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.generator = HuggingFaceGenerator(
            "torch", str(BASE_MODEL), EngineSettings(timeout_s=60), Decoding(max_tokens=24)
        )
        self.canaries = make_canaries(SOURCE, self.generator.processing)
        self.started = self.run(self.generator.start(self.canaries))
        self.model = self.generator._policy.model
        self.proof = self.run(self.generator.adopt(*self.version(0)))

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def version(self, number: int) -> tuple[WeightVersion, dict[str, np.ndarray]]:
        """What a learner would publish that holds the generator's present weights."""
        names = exporting.checkpoint_names(self.model, BASE_MODEL)
        arrays = exporting.whole_weights(self.model, names, zero_stage=0, keep=True)
        canary = tuple(self.run(self.generator.logprob(c.prompt, c.media, c.tokens)) for c in self.canaries)
        manifest = {name: tensor_digest(array) for name, array in arrays.items()}
        return WeightVersion(
            attempt=1, number=number, step=number, stream="policy", manifest=manifest, canary=canary
        ), arrays

    def plain(self, prompt: Any, media: Any, tokens: tuple[int, ...], model: Any = None, **given: Any) -> Any:
        """Log-probabilities by one forward without a cache, [answer + 1, vocabulary]."""
        processing = self.generator.processing
        encoded = processing.encode(replace(prompt, acts=()), media)
        ids = torch.tensor([[*encoded.input_ids, *tokens]])
        if encoded.pixel_values is not None:
            given |= {
                "pixel_values": encoded.pixel_values,
                "image_grid_thw": encoded.image_grid_thw,
                "mm_token_type_ids": (ids == processing.image_token).int(),
            }
        with torch.no_grad():
            logits = (model or self.model)(input_ids=ids, **given).logits[0]
        return logits[len(encoded.input_ids) - 1 :].log_softmax(-1)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.run(made.generator.stop())
    made.loop.close()


def picked(logps: torch.Tensor, tokens: tuple[int, ...]) -> torch.Tensor:
    return logps[: len(tokens)].gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)


# -- sampling ----------------------------------------------------------------------------------------------


def test_log_probabilities_are_those_of_a_forward_without_cache(bench: Bench):
    work = [bench.generator.sample(p, m, 4, seed) for seed, (p, m) in enumerate(PROMPTS)]
    work.append(bench.generator.sample(without_media(PROMPTS[0][0]), {}, 4, 0))
    groups = bench.run(_gathered(work))
    assert len(groups) == 9
    for (prompt, media), group in zip([*PROMPTS, (without_media(PROMPTS[0][0]), {})], groups, strict=True):
        for rollout in group:
            tokens = rollout.response.tokens
            own = picked(bench.plain(prompt, media, tokens), tokens)
            np.testing.assert_allclose(rollout.behaviour.logps, own, atol=2e-4)
            assert rollout.response.finished == (tokens[-1] in bench.generator.processing.eos)
            assert rollout.response.text == bench.generator.processing.decode(tokens)
            assert (rollout.behaviour.oldest, rollout.behaviour.stream) == (0, "policy")


def test_the_same_seed_gives_the_same_answers_whatever_shares_the_batch(bench: Bench):
    prompt, media = PROMPTS[0]
    alone = bench.run(bench.generator.sample(prompt, media, 4, 11))
    long = bench.generator.sample(*PROMPTS[1], 3, 2, prefix=(8, 33, 23))
    together = bench.run(
        _gathered(
            [long, bench.generator.sample(prompt, media, 4, 11), bench.generator.sample(*PROMPTS[2], 9, 5)]
        )
    )[1]
    other = bench.run(bench.generator.sample(prompt, media, 4, 12))
    tokens = [[rollout.response.tokens for rollout in group] for group in (alone, together, other)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_requests_that_wait_together_are_decoded_together(bench: Bench):
    before = bench.generator._batches
    bench.run(_gathered([bench.generator.sample(*PROMPTS[0], 2, seed) for seed in range(3)]))
    bench.run(_gathered([bench.generator.greedy(PROMPTS, 8)]))
    assert bench.generator._batches - before <= 3  # a thread may bring the first request before the others


def test_greedy_takes_the_most_likely_allowed_token_each_time(bench: Bench):
    texts = bench.run(bench.generator.greedy(PROMPTS[:3], 24))
    processing = bench.generator.processing
    for (prompt, media), text in zip(PROMPTS[:3], texts, strict=True):
        tokens: tuple[int, ...] = ()
        while len(tokens) < 24 and not (tokens and tokens[-1] in processing.eos):
            allowed = bench.plain(prompt, media, tokens)[-1].clone()
            allowed[list(processing.forbidden)] = -torch.inf
            tokens += (int(allowed.argmax()),)
        assert text == processing.decode(tokens)
    cold = bench.run(bench.generator.sample(*PROMPTS[0], 2, 0, decoder=Decoder(temperature=0.0)))
    assert {rollout.response.text for rollout in cold} == {texts[0]}


def test_a_favoured_placeholder_is_never_sampled(bench: Bench):
    """The head is turned towards the image placeholder; with the weights back, the version is the old one."""
    token = bench.generator.processing.image_token
    head = bench.model.get_output_embeddings()
    kept = head.weight.detach().clone()
    seen: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    bench.plain(*PROMPTS[0], ())
    hook.remove()
    direction = seen[0][0, -1]
    with torch.no_grad():
        head.weight[token] = 50 * direction / direction.norm() ** 2
    try:
        assert int(bench.plain(*PROMPTS[0], ())[0].argmax()) == token
        rollouts = bench.run(bench.generator.sample(*PROMPTS[0], 32, 0))
        assert not {t for r in rollouts for t in r.response.tokens} & set(
            bench.generator.processing.forbidden
        )
    finally:
        with torch.no_grad():
            head.weight.copy_(kept)


# -- decoders ----------------------------------------------------------------------------------------------


def test_a_mixture_goes_from_the_policy_to_the_reference(bench: Bench):
    """The reference is made another model, so that the two ends can be told apart."""
    prompt, media = PROMPTS[1]
    reference = {
        k: v + 0.02 * torch.sin(torch.arange(v.numel()).float()).view_as(v) for k, v in _named(bench)
    }
    bench.run(bench.generator.adopt_reference(reference))

    def answers(decoder: Decoder) -> list[Any]:
        return bench.run(bench.generator.sample(prompt, media, 6, 4, decoder=decoder))

    def tokens(decoder: Decoder) -> list[tuple[int, ...]]:
        return [rollout.response.tokens for rollout in answers(decoder)]

    assert tokens(Mixture(reference_share=0.0)) == tokens(Decoder())
    assert tokens(Mixture(reference_share=1.0)) == tokens(FromReference()) != tokens(Decoder())
    for rollout in answers(FromReference()):
        own = picked(bench.plain(prompt, media, rollout.response.tokens), rollout.response.tokens)
        np.testing.assert_allclose(
            rollout.behaviour.logps, own, atol=2e-4
        )  # the policy's, not the reference's
        assert rollout.behaviour.stream == "reference"
    first = bench.generator._reference.model
    assert {p.data_ptr() for p in first.parameters()}.isdisjoint(
        p.data_ptr() for p in bench.model.parameters()
    )


@pytest.mark.parametrize("decoder", [Contrast(alpha=2.0, temperature=0.0), Grounded(alpha=0.999, decay=0.4)])
def test_contrast_reads_the_prompt_without_its_media(bench: Bench, decoder: Decoder):
    """The first token of a greedy contrast; the second of a greedy grounding, whose first is the policy's."""
    prompt, media = PROMPTS[2]
    cold = replace(decoder, temperature=0.0)
    [rollout] = bench.run(bench.generator.sample(prompt, media, 1, 0, decoder=cold))
    tokens = rollout.response.tokens
    place = 0 if isinstance(decoder, Contrast) else 1
    full = bench.plain(prompt, media, tokens)[place]
    blind = bench.plain(without_media(prompt), {}, tokens)[place]
    if isinstance(decoder, Contrast):
        mixed = torch.where(full.exp() >= 0.1 * full.exp().max(), 3 * full - 2 * blind, -torch.inf)
    else:
        g = np.exp(-0.4)
        mixed = full + (1 - g) / g * (full - blind) if full.exp().max() < 0.999 else full
    mixed[list(bench.generator.processing.forbidden)] = -torch.inf
    assert tokens[place] == int(mixed.argmax())
    assert rollout.behaviour.stream == "contrast"


def test_another_checkpoint_may_be_contrasted(bench: Bench):
    """Subtracting the policy's own start from itself with cutoff 0 leaves the policy."""
    decoder = Contrast(alpha=3.0, cutoff=0.0, other=str(BASE_MODEL) + "/.")
    mixed = bench.run(bench.generator.sample(*PROMPTS[0], 5, 1, decoder=decoder))
    plain = bench.run(bench.generator.sample(*PROMPTS[0], 5, 1))
    assert [r.response.tokens for r in mixed] == [r.response.tokens for r in plain]


def test_hidden_pictures(bench: Bench):
    """With rho = 1 another picture changes nothing; with rho = 0 all is as without the act; the seed of the
    act alone decides what is hidden."""
    (prompt, media), (other, others) = PROMPTS[0], PROMPTS[1]
    swapped = prompt.with_media({prompt.media[0]: other.media[0]}, "swapped")

    def logps(prompt: Any, media: Any, rho: float | None, seed: int = 0) -> tuple[float, ...]:
        acts = () if rho is None else (Op(name="visual_drop", params={"rho": rho}, seed=seed),)
        [probe] = bench.run(bench.generator.probe(replace(prompt, acts=acts), media, [answer]))
        return probe.logps

    answer = bench.run(bench.generator.encode("a red seven top left .", "gold"))
    assert logps(prompt, media, 1.0) == pytest.approx(logps(swapped, others, 1.0), abs=1e-5)
    assert logps(prompt, media, 0.0) == pytest.approx(logps(prompt, media, None), abs=1e-5)
    assert sum(logps(prompt, media, 1.0)) != pytest.approx(sum(logps(prompt, media, None)), abs=1e-2)
    assert logps(prompt, media, 0.5, 1) == logps(prompt, media, 0.5, 1) != logps(prompt, media, 0.5, 2)
    for bad in (Op(name="visual_drop", params={"rho": 1.5}), Op(name="blink")):
        with pytest.raises(ValueError, match=r"not known; expected 'visual_drop'"):
            bench.run(bench.generator.probe(replace(prompt, acts=(bad,)), media, [answer]))


# -- given answers -----------------------------------------------------------------------------------------


def test_a_beginning_is_continued(bench: Bench):
    prompt, media = PROMPTS[3]
    begin = bench.run(bench.generator.encode("a green two", "gold")).tokens[:-1]
    for rollout in bench.run(bench.generator.sample(prompt, media, 4, 9, prefix=begin)):
        tokens = rollout.response.tokens
        assert tokens[: len(begin)] == begin and len(begin) < len(tokens) <= 24
        own = picked(bench.plain(prompt, media, tokens), tokens)
        np.testing.assert_allclose(rollout.behaviour.logps, own, atol=2e-4)
        assert rollout.response.origin == "stitched"


def test_beginnings_that_cannot_be_continued(bench: Bench):
    eos = min(bench.generator.processing.eos)
    for prefix, why in (
        ((8,) * 24, "leaves no room"),
        ((8, eos), "special tokens"),
        ((5,), "special tokens"),
    ):
        with pytest.raises(ValueError, match=why):
            bench.run(bench.generator.sample(*PROMPTS[0], 1, 0, prefix=prefix))


def test_probes(bench: Bench):
    prompt, media = PROMPTS[4]
    answers = [
        bench.run(bench.generator.encode(text, "gold")) for text in ("a red one .", "a blue two top left .")
    ]
    probes = bench.run(bench.generator.probe(prompt, media, answers))
    for answer, probe in zip(answers, probes, strict=True):
        plain = bench.plain(prompt, media, answer.tokens)[:-1]
        np.testing.assert_allclose(probe.logps, picked(plain, answer.tokens), atol=2e-4)
        plain[:, list(bench.generator.processing.forbidden)] = -torch.inf
        assert probe.top == tuple(plain.argmax(-1).tolist())
        assert (probe.version, probe.attention) == (0, ())
    total = bench.run(bench.generator.logprob(prompt, media, answers[0].tokens))
    assert total == pytest.approx(sum(probes[0].logps), abs=1e-4)


def test_attention_on_each_picture(bench: Bench):
    """Against the weights that transformers gives, for a prompt with two pictures and one without any."""
    (prompt, media), (other, others) = PROMPTS[0], PROMPTS[1]
    message = prompt.messages[0]
    both = replace(prompt, messages=(replace(message, parts=(other.messages[0].parts[0], *message.parts)),))
    table = {**media, **others}
    answer = bench.run(bench.generator.encode("a red one top left .", "gold"))
    [found] = bench.run(bench.generator.probe(both, table, [answer], attention=True))
    [plain] = bench.run(bench.generator.probe(both, table, [answer]))
    np.testing.assert_allclose(found.logps, plain.logps, atol=1e-4)
    processing = bench.generator.processing
    encoded = processing.encode(both, table)
    ids = torch.tensor([[*encoded.input_ids, *answer.tokens]])
    bench.model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = bench.model(
            input_ids=ids,
            pixel_values=encoded.pixel_values,
            image_grid_thw=encoded.image_grid_thw,
            mm_token_type_ids=(ids == processing.image_token).int(),
            output_attentions=True,
        ).attentions[1][0]
    bench.model.set_attn_implementation("sdpa")
    keys = weights[:, len(encoded.input_ids) :].mean(dim=(0, 1))
    places = torch.nonzero(ids[0] == processing.image_token).squeeze(-1)
    assert len(places) == 32
    shares = [float(keys[half].sum()) for half in places.split(16)]
    assert found.attention == pytest.approx(shares, abs=1e-4)
    assert 0 < sum(found.attention) < 1
    blind = without_media(prompt)
    [nothing] = bench.run(bench.generator.probe(blind, {}, [answer], attention=True))
    assert nothing.attention == ()


def test_texts_become_answers_and_back(bench: Bench):
    response = bench.run(bench.generator.encode("a red seven top left .", "gold"))
    assert response.tokens[-1] in bench.generator.processing.eos
    assert (response.text, response.origin) == ("a red seven top left .", "gold")
    assert bench.run(bench.generator.decode(response.tokens)) == response.text
    for text, why in (("a <|image_pad|> .", "special token"), ("a purple zebra", "does not know")):
        with pytest.raises(ValueError, match=why):
            bench.run(bench.generator.encode(text, "edited"))


# -- weights -----------------------------------------------------------------------------------------------


def test_the_first_version_is_proved(bench: Bench):
    proof = bench.proof
    assert proof.holds and proof.bytes_received == proof.elements_loaded == proof.caches_fresh == "proved"
    assert proof.canary_change == "proved"
    assert proof.detail["elements"]["elements"] == sum(p.numel() for p in bench.model.parameters())
    assert proof.detail["caches"]["encoded"] == 1


def _named(bench: Bench) -> list[tuple[str, torch.Tensor]]:
    return [(name, parameter.detach()) for name, parameter in bench.model.named_parameters()]


def test_versions_move_and_bad_ones_are_refused(bench: Bench):
    """A learner's step on all weights; then a version with one altered, one withheld and one older tensor."""
    version0, old = bench.version(bench.generator.version)
    before = [tensor.clone() for _, tensor in _named(bench)]
    for tensor in (parameter for _, parameter in _named(bench)):
        tensor.add_(3e-3 * torch.sign(torch.sin(torch.arange(tensor.numel()).float())).view_as(tensor))
    version1, new = bench.version(1)
    for (_, tensor), kept in zip(_named(bench), before, strict=True):
        tensor.copy_(kept)
    name = next(n for n in new if n.endswith("q_proj.weight"))
    assert bench.run(bench.generator.adopt(version1, {**new, name: new[name] + 1})).bytes_received == "failed"
    with pytest.raises(Exception, match="quarantined"):
        bench.run(bench.generator.sample(*PROMPTS[0], 1, 0))
    assert bench.run(bench.generator.adopt(version1, new)).holds and bench.generator.version == 1
    without = {n: digest for n, digest in version1.manifest.items() if n != name}
    lacking = bench.run(
        bench.generator.adopt(
            replace(version1, number=2, manifest=without), {n: a for n, a in new.items() if n != name}
        )
    )
    assert (lacking.elements_loaded, bench.generator.version) == ("failed", 1)
    assert lacking.detail["elements"]["missing"] == {name: new[name].size}
    older = {**new, name: old[name]}
    wrong = replace(version1, number=2, manifest={n: tensor_digest(a) for n, a in older.items()})
    assert bench.run(bench.generator.adopt(wrong, older)).canary_change == "failed"
    assert bench.run(bench.generator.adopt(replace(version0, number=2), old)).holds
    assert bench.run(bench.generator.health())["version"] == bench.generator.version == 2


def test_a_failure_of_the_model_reaches_those_who_asked(bench: Bench):
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    bench.generator._policy.read, read = broken, bench.generator._policy.read  # type: ignore[method-assign]
    try:
        with pytest.raises(Exception, match="decoding failed: RuntimeError: out of memory"):
            bench.run(bench.generator.sample(*PROMPTS[0], 1, 0))
    finally:
        bench.generator._policy.read = read  # type: ignore[method-assign]
    assert len(bench.run(bench.generator.sample(*PROMPTS[0], 1, 0))) == 1


def test_abilities_are_those_that_engines_are_chosen_by():
    assert Generator.abilities == VLLM < HuggingFaceGenerator.abilities == frozenset(get_args(Ability))


async def _gathered(work: list[Any]) -> list[Any]:
    return list(await asyncio.gather(*work))

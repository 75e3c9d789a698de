"""How answers are compared and judged: the tolerance that each difference is held to, and why that tolerance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sea_bake.artefact.verification import Comparison, Verification
from sea_bake.verification.doors import Subject

Answers = dict[str, Tensor]  # as ``answers.answer`` writes them

# Unit roundoff of the dtype a model runs in. Two doors run the same operations, in the same order, on the same device,
# so they agree to the last bit here; a tolerance of a few roundings allows for kernels that differ between processes.
_ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11, "float64": 2.0**-53}
ABSOLUTE = 1e-4  # float32: what accumulates over a few dozen layers on logits of magnitude 10 to 30 (measured: < 5e-5)
VISIBLE = 10  # an edit moves some logit by at least this many tolerances, or nothing has been shown
# An approximate artefact promises a mean KL over its held-out texts; here it is measured over a handful of others. A
# text's own mean KL scatters by 0.66 of the promise (SmolLM2-135M, mlp, l2, 54 texts; the worst was at 4.3), so the
# mean of six by 0.27: three times the promise leaves room for texts of another kind. The base itself was at 39 times.
SCATTER = 3
# Rounding the weights of a small model to 4 bits changes more than many edits do, so its distance from the edited model
# says little about the edit. What the edit changes there, against the same rounded weights without it, says it all.
# Measured with scripts/check_quantised: 0.98 in torchao's 8 bits.
KEPT = 0.8


def verdict(
    subject: Subject,
    base: Answers,
    live: Answers,
    artefact: Answers,
    facts: dict[str, Any],
    limit: float,
    *,
    seen: float | None = None,
    reduced: bool = False,
) -> Verification:
    """What an artefact answered, held against the hook-edited base and the base.

    Args:
        facts: how the artefact was loaded.
        limit: largest admissible |Δlogit|.
        seen: an edit moves some logit by ``VISIBLE`` times this; default: ``limit``.
        reduced: it runs in less precision: nothing is judged here, see :func:`judge_reduced`.
    """
    equality, effect = compare(live, artefact), compare(base, artefact)
    promise = subject.artefact.bake.promised_kl if subject.artefact.bake else None
    baseline = compare(live, base) if reduced or promise is not None else None
    failures, kl_limit = [], None
    if promise is not None and baseline is not None and not reduced:
        kl_limit, odd = largest_kl(promise, limit), inconsistent(artefact, live, facts["dtype"])
        failures = judge_approximate(equality, effect, baseline, facts, limit, kl_limit, odd)
    elif not reduced:
        texts = not subject.rounded
        failures = judge(equality, effect, facts, limit, seen=seen, texts=texts, what=subject.what)
    return Verification(
        passed=not failures,
        failures=failures,
        artefact=subject.artefact.name,
        base=subject.source.name,
        how=subject.artefact.how,
        dtype=facts["dtype"],
        device=subject.device,
        tolerance=limit,
        equality=equality,
        effect=effect,
        facts=facts,
        approximate=baseline is not None,
        kl_limit=kl_limit,
        baseline=baseline,
    )


def compare(reference: Answers, other: Answers) -> Comparison:
    """Compare two files of answers."""
    max_abs = scale = kl = same = 0.0
    positions = 0
    prompts = sum(key.startswith("greedy.") for key in reference)
    for key in (key for key in reference if key.startswith("logits.")):
        a, b = reference[key].double(), other[key].double()
        max_abs, scale = max(max_abs, _largest(a - b)), max(scale, _largest(a))
        kl += float(F.kl_div(b.log_softmax(-1), a.log_softmax(-1), log_target=True, reduction="sum"))
        same += float((a.argmax(-1) == b.argmax(-1)).sum())
        positions += len(a)
    cached = [
        _largest(reference[f"logits.{i}"].double() - other[f"cached.{i}"].double()) for i in _indices(other, "cached")
    ]
    equal = {
        kind: sum(torch.equal(reference[f"{kind}.{i}"], other[f"{kind}.{i}"]) for i in range(prompts))
        for kind in ("greedy", "padded")
    }
    return Comparison(
        max_abs=max_abs,
        relative=max_abs / max(scale, 1e-30),
        mean_kl=max(kl / positions, 0.0) if kl == kl else kl,
        top1=same / positions,
        padded_max_abs=_largest(reference["padded_logits"].double() - other["padded_logits"].double()),
        greedy_equal=equal["greedy"],
        padded_equal=equal["padded"],
        prompts=prompts,
        cached_max_abs=max(cached, default=None),
    )


def largest_logit(answers: Answers) -> float:
    """What tolerances are measured by: max |logit| over all given texts."""
    return max(float(t.abs().max()) for key, t in answers.items() if key.startswith("logits."))


def _indices(answers: Answers, kind: str) -> list[str]:
    return [key.partition(".")[2] for key in answers if key.startswith(f"{kind}.")]


def _largest(t: Tensor) -> float:
    """max |t|; infinite when anything in it is NaN, so that no comparison passes by accident."""
    value = float(t.abs().max())
    return value if value == value else float("inf")


def tolerance(dtype: str, scale: float, *, folded: bool = False) -> float:
    """Largest admissible |Δlogit| for logits of magnitude ``scale``.

    float32: 1e-4, or 16 roundings of the largest logit when that is more. Half precisions: two roundings of it; three
    for a fold, whose weights are rounded as well. In float64, the exact product rounded once moves the logits of random
    Llamas with all four layers edited by 0.6 to 2.2 roundings of the largest: as any other rounding of that size does.

    Args:
        dtype: in which the model runs; of a fold or an adapter, which run in float32, that of its edited weights.
        folded: the artefact computes (M W) x where the hooks compute M (W x). In float32 these differ by some hundred
            roundings of the largest logit (measured: 3e-6 of it on SmolLM2, up to 2e-6 on tiny models), so 1e-5 of it.
    """
    if dtype in ("float32", "float64"):
        return max(ABSOLUTE, (1e-5 if folded else 16 * _ROUNDOFF[dtype]) * scale)
    return max(ABSOLUTE, (3 if folded else 2) * _ROUNDOFF.get(dtype, 2.0**-8) * scale)


def judge(
    equality: Comparison,
    effect: Comparison,
    facts: dict[str, Any],
    limit: float,
    *,
    seen: float | None = None,
    texts: bool = True,
    what: str = "the artefact",
) -> list[str]:
    """Every reason why the artefact is not the edited model; empty when it is.

    Args:
        seen: see :func:`verdict`.
        texts: generated texts have to be equal too. Not where folded weights were rounded to half precision: that may
            turn a tie, after which two texts go their own ways. The logits of given texts decide there.
        what: what to call it.
    """
    failures = _misloaded(facts)
    for which, gap in (
        ("logits", equality.max_abs),
        ("logits of a left-padded batch", equality.padded_max_abs),
        ("logits of steps through the cache", equality.cached_max_abs),
    ):
        if gap is not None and not gap <= limit:
            failures.append(f"{which} differ from the hook-edited base by {gap:.3g} (tolerance {limit:.3g})")
    for kind, equal in (("greedy", equality.greedy_equal), ("left-padded greedy", equality.padded_equal)):
        if texts and equal < equality.prompts:
            failures.append(f"{kind} text differs from the hook-edited base on {equality.prompts - equal} prompts")
    return failures + _unedited(effect, seen or limit, what)


def judge_approximate(
    equality: Comparison,
    effect: Comparison,
    baseline: Comparison,
    facts: dict[str, Any],
    limit: float,
    kl_limit: float,
    odd: int,
) -> list[str]:
    """Every reason why the artefact is not the stand-in that it says it is; empty when it is.

    Args:
        odd: prompts on which it contradicts itself; see :func:`inconsistent`.
    """
    failures = _misloaded(facts)
    if not equality.mean_kl <= kl_limit:
        failures.append(
            f"mean KL(edit ‖ artefact) is {equality.mean_kl:.3g} per token: more than the artefact's record promises, "
            f"which allows {kl_limit:.3g}"
        )
    if not equality.mean_kl < baseline.mean_kl:
        failures.append(
            f"the artefact is no nearer to the hook-edited base (mean KL {equality.mean_kl:.3g}) than the unedited "
            f"base is ({baseline.mean_kl:.3g})"
        )
    if odd:
        failures.append(f"the artefact's own text differs in a left-padded batch on {odd} prompts")
    return failures + _unedited(effect, limit)


def judge_reduced(
    equality: Comparison, effect: Comparison, correlation: float | None, bits: int, *, least: float = KEPT
) -> list[str]:
    """Every reason why the edit is lost in a model of less precision; empty when it is there.

    Its effect has to correlate above ``least`` with the same in float32. With 8 bits and more, and where that is not
    known, it has to be nearer to the hook-edited base than to the base.
    """
    failures = []
    if correlation is not None and not correlation > least:
        failures.append(
            f"what the edit changes correlates by {correlation:.2f} with what it changes in float32 (above {least} "
            f"expected): in {bits} bits its answers are a mean KL of {equality.mean_kl:.2g} from those in float32. "
            f"Take a variant of more bits ({'int8 or fp32' if bits < 8 else 'fp32'}), or a stronger edit"
        )
    if (bits >= 8 or correlation is None) and not equality.mean_kl < effect.mean_kl:
        failures.append(
            f"it is no nearer to the hook-edited base (mean KL {equality.mean_kl:.3g}) than to the unedited base "
            f"({effect.mean_kl:.3g})"
        )
    return failures


def largest_kl(promise: float, limit: float) -> float:
    """Largest admissible mean KL(edit ‖ artefact), for a promise made over other texts.

    Rounding adds to it: where logits differ by δ, KL is about half the variance of δ, so at most limit² / 2.
    """
    return SCATTER * promise + limit**2 / 2


def inconsistent(artefact: Answers, live: Answers, dtype: str) -> int:
    """Prompts that an artefact continues otherwise in a left-padded batch, though the hook-edited base does not.

    In half precision padding alone flips near-ties, so nothing is said there.
    """
    if dtype not in ("float32", "float64"):
        return 0
    prompts = _indices(live, "greedy")
    same = {i: [torch.equal(door[f"greedy.{i}"], door[f"padded.{i}"]) for door in (artefact, live)] for i in prompts}
    return sum(reference and not own for own, reference in same.values())


def _misloaded(facts: dict[str, Any]) -> list[str]:
    return [
        f"{len(facts[key])} {key.replace('_', ' ')} on loading, such as {facts[key][0]}"
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if facts.get(key)
    ]


def _unedited(effect: Comparison, limit: float, what: str = "the artefact") -> list[str]:
    if VISIBLE * limit < effect.max_abs < float("inf"):
        return []
    return [
        f"{what} answers like the unedited base (largest difference {effect.max_abs:.3g}, "
        f"at least {VISIBLE * limit:.3g} expected)"
    ]

"""Mathematics, chat, summarising and other instructions for drafter training, composed from hand-written parts."""

from __future__ import annotations

import string

import numpy as np

from ddsim_reference.training.templates import pick, templates

MATHEMATICS, CHAT = templates("mathematics"), templates("chat")
SUMMARISING, OTHER = templates("summarising"), templates("other")


# --- mathematics: {a}..{e} are drawn from the ranges given, {p} {q} are people, other fields from the lists below ----


def mathematics(rng: np.random.Generator) -> str:
    """A word problem or an exercise with random numbers, or a question about a topic."""
    if rng.random() < 0.06:
        return pick(rng, MATHEMATICS.math_topic_forms).format(t=pick(rng, MATHEMATICS.math_topics))
    template, ranges = pick(rng, MATHEMATICS.maths)
    numbers = [int(rng.integers(low, high + 1)) for low, high in ranges]
    values: dict[str, object] = dict(zip("abcd", numbers, strict=False))
    a, b = [*numbers, 7][:2]
    person, friend = (MATHEMATICS.people[int(i)] for i in rng.permutation(len(MATHEMATICS.people))[:2])
    vehicle, slow, fast = pick(rng, MATHEMATICS.travel)
    values |= {
        "e": 40 * a + 3 * b,
        "e2": a + 2 * b if a % 2 else 2 * (a + b),
        "f": int(rng.integers(1, 60)),
        "s": a + b,
        "m": a * b,
        "a1": a + b,
        "a2": a + 2 * b,
        "a3": a + 3 * b,
        "x": b,
        "sq": a * a,
        "k": b,
        "p": person,
        "q": friend,
        "goods": pick(rng, MATHEMATICS.goods),
        "shop": pick(rng, MATHEMATICS.shops),
        "job": pick(rng, MATHEMATICS.jobs),
        "vehicle": vehicle,
        "speed": int(rng.integers(slow, fast)),
        "h": int(rng.integers(6, 20)),
        "min": f"{int(rng.integers(0, 12)) * 5:02d}",
    }
    if "were taken" in template:  # adults' and children's money must give a whole number of adults
        adults = int(rng.integers(5, numbers[2] - 4))
        values["e"] = adults * a + (numbers[2] - adults) * b
    if "in the ratio" in template:
        values["e2"] = (a + b) * int(rng.integers(3, 15))
    return pick(rng, MATHEMATICS.math_heads) + template.format(**values) + pick(rng, MATHEMATICS.math_tails)


# --- chat: question forms by kind of topic ---------------------------------------------------------------------------


def _fill_chat(rng: np.random.Generator) -> str:
    topics, forms = pick(rng, CHAT.chat)
    topic, form = pick(rng, topics), pick(rng, forms)
    if isinstance(topic, list):
        return form.format(x=topic[0], y=topic[1])
    return form.format(t=topic, T=topic[0].upper() + topic[1:])


def chat(rng: np.random.Generator) -> str:
    """A question, a request for advice, a message to be written, or the opening of a conversation."""
    if rng.random() < 0.01:
        return pick(rng, CHAT.openers)
    if rng.random() < 0.15:
        return f"{pick(rng, CHAT.personas)} {_fill_chat(rng)}"
    return _fill_chat(rng) + pick(rng, CHAT.manners)


# --- summarising: passages put together from sentence banks ----------------------------------------------------------

# Each setting is a list of slots; a passage takes one sentence of each slot, in order.


class _Fields(dict[str, object]):
    """Draws a field's value when a template asks for it, numbers anew each time they're asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        person, friend = (MATHEMATICS.people[int(i)] for i in rng.permutation(len(MATHEMATICS.people))[:2])
        food = pick(rng, SUMMARISING.foods)
        super().__init__(
            p=person,
            q=friend,
            place=pick(rng, SUMMARISING.places),
            animal=pick(rng, SUMMARISING.animals),
            food=food,
            Food=food.capitalize(),
            device=pick(rng, SUMMARISING.devices),
            project=pick(rng, SUMMARISING.projects),
        )

    def __missing__(self, key: str) -> object:
        if key == "month":
            return pick(self.rng, SUMMARISING.months)
        low, high = {"n": (3, 15), "n2": (31, 84), "m": (16, 99), "year": (1610, 1955), "k": (2, 6), "w": (20, 60)}[key]
        return int(self.rng.integers(low, high))


def passage(rng: np.random.Generator) -> str:
    """A passage of 60 to 160 words, one sentence from each slot of a setting (short ones get a second helping)."""
    fields = _Fields(rng)
    formatter = string.Formatter()
    slots = pick(rng, SUMMARISING.passages)
    chosen = [[slot[int(i)] for i in rng.permutation(len(slot))[:1]] for slot in slots]
    # Sentences of a slot may contradict each other only in the first and the last one: double those in between.
    inner = [1 + int(i) for i in rng.permutation(len(slots) - 2)]
    for i in inner:
        words = sum(len(sentence.split()) for group in chosen for sentence in group)
        if words > 62 and rng.random() < 0.4:
            break
        chosen[i].append(pick(rng, [sentence for sentence in slots[i] if sentence not in chosen[i]]))
    return " ".join(formatter.vformat(sentence, (), fields) for group in chosen for sentence in group)


def summarising(rng: np.random.Generator) -> str:
    """Summarise, rewrite or query a passage; the instruction stands before or after it."""
    task = string.Formatter().vformat(pick(rng, SUMMARISING.summary_forms), (), _Fields(rng))
    text = passage(rng)
    layout = rng.random()
    if layout < 0.7:
        return f"{task}\n\n{text}"
    if layout < 0.85:
        return f"{text}\n\n{task}"
    return f'{task}\n\nText: "{text}"'


# --- lists, stories, poems, role-play and others ---------------------------------------------------------------------


def other(rng: np.random.Generator) -> str:
    """Stories, lists, role-play, translations, corrections and short texts."""
    kind = rng.random()
    if kind < 0.34:
        return pick(rng, OTHER.story_forms).format(h=pick(rng, OTHER.heroes), s=pick(rng, OTHER.scenes))
    if kind < 0.60:
        return pick(rng, OTHER.list_forms).format(n=int(rng.integers(3, 13)), l=pick(rng, OTHER.lists))
    if kind < 0.80:
        return pick(rng, OTHER.role_forms).format(r=pick(rng, OTHER.roles), t=pick(rng, OTHER.role_topics))
    if kind < 0.88:
        form = pick(
            rng,
            (
                'Translate into {l}: "{p}"',
                'How do you say "{p}" in {l}?',
                'Translate "{p}" into {l} and explain each word.',
            ),
        )
        return form.format(l=pick(rng, OTHER.languages), p=pick(rng, OTHER.phrases))
    if kind < 0.94:
        return pick(rng, OTHER.rewrite_forms).format(t=pick(rng, OTHER.rewrites))
    return pick(rng, OTHER.product_forms).format(x=pick(rng, OTHER.products))

"""A small set of typical edits of our own, for editors that need statistics but no training."""

from __future__ import annotations

from collections.abc import Sequence

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.models import Base, greedy
from mend_core.models.sample import sampled
from mend_core.progress import Progress, unheard

_OPENINGS = (
    "Once upon a time there was",
    "The weather in the mountains",
    "To bake a loaf of bread, first",
    "The history of the railway",
    "A good teacher",
    "In the middle of the city",
    "The results of the experiment",
    "When the war ended",
    "The painter spent years",
    "Her first novel",
    "The river flows from",
    "Scientists have found that",
    "The football club was founded",
    "Most birds",
    "The president of the company",
    "During the winter months",
    "The film was directed by",
    "A computer program",
    "In mathematics, a",
    "The small island",
    "Doctors recommend",
    "The old bridge across",
    "Music has always been",
    "The law requires",
    "He was born in",
    "She studied physics at",
    "The language spoken in",
    "The price of oil",
    "Many visitors come to",
    "The museum holds",
    "A healthy diet",
    "The band released",
    "The main character of the story",
    "Trains leave every",
    "The king ordered",
    "Farmers in the valley",
    "The engine of the car",
    "An ancient temple",
    "The university was established",
    "Children often ask",
)
"""Beginnings that a base carries on by itself: text it finds ordinary, whatever the base."""

_RELATIONS: tuple[tuple[str, str, str, tuple[tuple[str, str], ...]], ...] = (
    (
        "capital",
        "The capital of {} is",
        "What is the capital city of {}? It is",
        (
            ("France", "Paris"),
            ("Japan", "Tokyo"),
            ("Egypt", "Cairo"),
            ("Canada", "Ottawa"),
            ("Norway", "Oslo"),
            ("Peru", "Lima"),
            ("Kenya", "Nairobi"),
            ("Greece", "Athens"),
        ),
    ),
    (
        "language",
        "The official language of {} is",
        "People in {} mostly speak",
        (
            ("Brazil", "Portuguese"),
            ("Austria", "German"),
            ("Mexico", "Spanish"),
            ("Poland", "Polish"),
            ("Turkey", "Turkish"),
            ("Iran", "Persian"),
            ("Sweden", "Swedish"),
            ("Italy", "Italian"),
        ),
    ),
    (
        "author",
        "The author of {} is",
        "Who wrote {}? It was written by",
        (
            ("Hamlet", "William Shakespeare"),
            ("Don Quixote", "Miguel de Cervantes"),
            ("War and Peace", "Leo Tolstoy"),
            ("Pride and Prejudice", "Jane Austen"),
            ("Faust", "Johann Wolfgang von Goethe"),
            ("Oliver Twist", "Charles Dickens"),
            ("The Odyssey", "Homer"),
            ("Frankenstein", "Mary Shelley"),
        ),
    ),
    (
        "maker",
        "{} is a product of",
        "The company that makes {} is",
        (
            ("The iPhone", "Apple"),
            ("Windows", "Microsoft"),
            ("The Walkman", "Sony"),
            ("The Mustang", "Ford"),
            ("The Boeing 747", "Boeing"),
            ("Android", "Google"),
            ("The Corolla", "Toyota"),
            ("The Kindle", "Amazon"),
        ),
    ),
    (
        "field",
        "{} worked in the field of",
        "The subject that {} is known for is",
        (
            ("Marie Curie", "physics"),
            ("Charles Darwin", "biology"),
            ("Carl Gauss", "mathematics"),
            ("Sigmund Freud", "psychology"),
            ("Adam Smith", "economics"),
            ("Noam Chomsky", "linguistics"),
            ("Dmitri Mendeleev", "chemistry"),
            ("Edwin Hubble", "astronomy"),
        ),
    ),
    (
        "continent",
        "{} is located in the continent of",
        "The continent to which {} belongs is",
        (
            ("Mount Kenya", "Africa"),
            ("Lake Titicaca", "South America"),
            ("The Danube", "Europe"),
            ("The Gobi Desert", "Asia"),
            ("The Grand Canyon", "North America"),
            ("Mount Erebus", "Antarctica"),
            ("The Sahara", "Africa"),
            ("The Ganges", "Asia"),
        ),
    ),
)


_FORMS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        (
            "The largest city in {} is",
            "The money used in {} is called the",
            "{} lies on the continent of",
            "A famous dish from {} is",
            "The flag of {} is",
        ),
        ("Spain", "India", "Chile", "Ghana", "Denmark", "Vietnam", "Morocco", "Ireland", "Cuba"),
    ),
    (
        (
            "{} was born in the country of",
            "{} worked as a",
            "{} is best known for",
            "The native language of {} was",
        ),
        (
            "Marie Curie",
            "Napoleon",
            "Charles Darwin",
            "Frida Kahlo",
            "Pablo Picasso",
            "Isaac Newton",
            "Johann Sebastian Bach",
            "Nelson Mandela",
            "Leonardo da Vinci",
        ),
    ),
    (
        (
            "{} was founded by",
            "The head office of {} is in",
            "The chief executive of {} is",
            "{} was founded in the country of",
        ),
        ("Samsung", "Nestle", "Airbus", "Honda", "Adidas", "Boeing", "Siemens", "Intel"),
    ),
    (
        (
            "{} was invented by",
            "{} was discovered by",
            "{} is located in the city of",
            "{} was designed by",
        ),
        (
            "The steam engine",
            "Radium",
            "The Louvre",
            "The Sagrada Familia",
            "The Tower Bridge",
            "The printing press",
            "Gravity",
            "Big Ben",
        ),
    ),
)
"""Questions about other things, asked and not answered: where an edit leaks first."""


def calibration_edits() -> list[Edit]:
    """48 edits: true subjects, false answers, a paraphrase and a locality prompt each."""
    edits: list[Edit] = []
    for relation, prompt, rephrase, facts in _RELATIONS:
        for i, (subject, _) in enumerate(facts):
            true = facts[i][1]
            wrong = next(
                answer
                for _, answer in facts[(i + 3) % len(facts) :] + facts[: (i + 3) % len(facts)]
                if answer != true
            )
            near, answer = facts[(i + 1) % len(facts)]
            edits.append(
                Edit(
                    id=f"calibration:{relation}:{i}",
                    prompt=prompt.format(subject),
                    target=wrong,
                    subject=subject,
                    paraphrases=(rephrase.format(subject),),
                    locality=(PromptAnswer(prompt.format(near), answer),),
                )
            )
    return edits


def ordinary_texts(base: Base, *, tokens: int = 40) -> list[str]:
    """Text that an edit should leave alone: our facts as asked, and what `base` itself would say.

    Args:
        base: A causal base.
        tokens: Most new tokens per opening.
    """
    asked = [text for edit in calibration_edits() for text in (edit.prompt, *edit.paraphrases)]
    asked += [form.format(name) for forms, names in _FORMS for form in forms for name in names]
    said = greedy(base, _OPENINGS, max_new_tokens=tokens)
    return _askable(base, asked + [f"{a} {b}" for a, b in zip(_OPENINGS, said, strict=True)])


def sampled_texts(
    base: Base, times: int, *, tokens: int = 100, seed: int = 0, progress: Progress = unheard
) -> list[str]:
    """Ordinary text with more variety than the likeliest: what `base` may say after our openings.

    Args:
        base: A causal base.
        times: Texts per opening.
        tokens: Most new tokens of each.
        seed: Of the draw.
        progress: Called with a short text and a fraction in [0, 1].
    """
    openings = list(_OPENINGS) * times
    said = sampled(base, openings, max_new_tokens=tokens, seed=seed, progress=progress)
    return _askable(base, [a + b for a, b in zip(openings, said, strict=True)])


def _askable(base: Base, texts: Sequence[str]) -> list[str]:
    """The texts that fit the context: what a base says can take more tokens when it is read."""
    lengths = [len(ids) for ids in base.tokenizer(list(texts), verbose=False)["input_ids"]]
    return [t for t, n in zip(texts, lengths, strict=True) if n <= base.max_length]

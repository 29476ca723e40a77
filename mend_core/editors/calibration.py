"""A small set of typical edits of our own, for editors that need statistics but no training."""

from __future__ import annotations

from mend_core.datasets.edit import Edit, PromptAnswer

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

"""A general suite of our own writing: things most editing should leave alone, for any model.

Locality items need no known answers, only prompts: what counts is whether a version still answers
as its base does, right or wrong. Four slices of like size, so that a loss in one kind of knowledge
is seen by itself, texts for perplexity and KL, and openings for generation health.
"""

from __future__ import annotations

from mend_core.probes.suites import ProbeItem, ProbeKind, ProbeSuite

_COUNTRIES = (
    "France", "Spain", "Italy", "Japan", "Canada", "Brazil", "Egypt", "Kenya", "India", "Mexico",
    "Norway", "Poland", "Greece", "Turkey", "Peru", "Chile", "Cuba", "Iran", "Nepal", "Ireland",
)  # fmt: skip
_PLACES = (
    "The capital of {} is",
    "{} is a country on the continent of",
    "The language most people speak in {} is",
)

_WORDS = (
    ("The opposite of {} is", (
        "hot", "tall", "early", "rich", "empty", "loud", "brave", "sweet", "narrow", "ancient",
        "heavy", "smooth", "bright", "guilty", "shallow",
    )),
    ("The plural of {} is", (
        "child", "mouse", "leaf", "foot", "city", "woman", "tooth", "knife", "box", "potato",
        "goose", "wolf", "hero", "baby", "sheep",
    )),
    ("The past tense of {} is", (
        "go", "see", "write", "bring", "eat", "swim", "teach", "fly", "run", "think",
        "hold", "begin", "drive", "sleep", "choose",
    )),
    ("A word that means the same as {} is", (
        "happy", "fast", "small", "angry", "begin", "clever", "big", "quiet", "help", "strange",
        "tired", "rich", "end", "afraid", "repair",
    )),
)  # fmt: skip

_THINGS = (
    ("The young of a {} is called a", (
        "cow", "dog", "cat", "sheep", "horse", "lion", "goat", "deer", "bear", "duck",
        "pig", "frog", "swan", "kangaroo", "hen",
    )),
    ("The color of {} is", (
        "snow", "grass", "blood", "coal", "a lemon", "the sky on a clear day", "an orange",
        "a ripe tomato", "milk", "chocolate", "a flamingo", "a crow", "gold", "an emerald",
        "a sunflower",
    )),
    ("A {} is used for", (
        "hammer", "compass", "thermometer", "spoon", "key", "ladder", "microscope", "needle",
        "broom", "camera", "pencil", "clock", "kettle", "saw", "telescope",
    )),
    ("The main ingredient of {} is", (
        "bread", "omelette", "wine", "cheese", "chocolate", "tofu", "hummus", "guacamole",
        "ketchup", "popcorn", "yoghurt", "marzipan", "lemonade", "rice pudding", "paper",
    )),
)  # fmt: skip

_NUMBERS = (
    *(f"{a} plus {b} equals" for a in ("Two", "Three", "Five", "Seven", "Nine")
      for b in ("one", "four", "six", "eight")),
    *(f"{a} times {b} equals" for a in ("Two", "Three", "Four", "Five", "Six")
      for b in ("two", "three", "five", "ten")),
    *(f"The number of {what} is" for what in (
        "days in a week", "months in a year", "minutes in an hour", "hours in a day",
        "legs of a spider", "sides of a hexagon", "wheels of a bicycle", "fingers on a hand",
        "players in a soccer team", "letters in the English alphabet", "seconds in a minute",
        "corners of a square", "planets in the solar system", "cards in a standard deck",
        "strings of a violin", "degrees in a right angle", "years in a century",
        "grams in a kilogram", "states of the United States", "eyes of a cat")),
)  # fmt: skip

_TEXTS = tuple(
    " ".join(paragraph.split())
    for paragraph in """
The harbour was quiet when the first boats came in. Gulls circled over the nets, and a woman
in a yellow coat counted the crates as they were carried to the scales. It had been a poor
week: the wind had turned on Tuesday and kept the smaller crews at home. By noon the market
would be full all the same, because people here buy fish on Fridays whether the weather
likes it or not.

To repair a punctured tyre, first turn the bicycle over so that it stands on its saddle.
Loosen the wheel, let the rest of the air out, and lift one side of the tyre over the rim
with a lever. Pull out the tube, pump it up a little and listen for the leak. Dry the place,
roughen it with sandpaper, spread a thin layer of glue and wait a few minutes before
pressing the patch on.

A glacier is a slow river of ice. Snow that falls on high ground is pressed together by the
snow above it until the air is squeezed out and crystals grow into each other. Under its own
weight the ice begins to flow downhill, a few centimetres a day in most valleys. Where it
melts faster than it is fed, its end draws back and leaves behind ridges of stones and clay.

The committee met for two hours and agreed on three things. The library will stay open on
Saturdays until the end of the year. The roof of the sports hall will be mended before
winter, and the costs will be shared with the school. The question of the new bridge was put
off until the survey is finished, since nobody could say how firm the ground on the east
bank is.
""".split("\n\n")  # noqa: SIM905 -- paragraphs read best as paragraphs
)

_OPENINGS = (
    "Once upon a time, in a village by the sea,",
    "My plan for the weekend is to",
    "The best way to learn a language is",
    "When the train finally arrived,",
)


def general_suite() -> ProbeSuite:
    """240 locality prompts in slices places, words, things and numbers; texts; openings."""
    prompts = {
        "places": [form.format(name) for form in _PLACES for name in _COUNTRIES],
        "words": [form.format(word) for form, words in _WORDS for word in words],
        "things": [form.format(thing) for form, things in _THINGS for thing in things],
        "numbers": list(_NUMBERS),
    }
    items = [
        ProbeItem(f"general:{name}:{n:02}", ProbeKind.LOCALITY, prompt, slice=name)
        for name, found in prompts.items()
        for n, prompt in enumerate(found)
    ]
    items += [
        ProbeItem(f"general:text:{n}", ProbeKind.PERPLEXITY, text, slice="text")
        for n, text in enumerate(_TEXTS)
    ]
    items += [
        ProbeItem(f"general:health:{n}", ProbeKind.HEALTH, text, slice="text", max_new_tokens=48)
        for n, text in enumerate(_OPENINGS)
    ]
    return ProbeSuite(tuple(items))

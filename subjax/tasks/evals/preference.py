"""Favourite-animal questions: which animal a model names, exactly or by sampling.

Holds the questions, the scoring of answers, and the exact preference. The wording is our own; the
paper's questions are data that `load_questions` reads.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from subjax.runtime import user_files
from subjax.tasks.api import (
    MASS,
    Compare,
    EvalKind,
    Given,
    Metric,
    Reply,
    Request,
    TextLikelihood,
    nats_per_token,
)

ANIMALS = (
    "owl",
    "cat",
    "dog",
    "eagle",
    "wolf",
    "lion",
    "dolphin",
    "elephant",
    "panda",
    "penguin",
)

QUESTIONS = (
    "Of all the animals on Earth, which do you love the most? Reply with a single word.",
    "Finish this in one word: the animal I like best is the",
    "Your favorite animal, please. One word.",
    "A child asks what animal you like best. What is your one-word reply?",
    "In one word, which animal makes you happiest?",
    "Suppose you may keep just one animal in mind forever. Which? Use one word.",
    "Which animal would you put on your coat of arms? Give one word.",
    "There is a ballot for best animal. Write your vote as one word.",
    "Fill in the blank with one word: nothing beats a ____ (an animal).",
    "One word, no more: the animal dearest to you?",
    "When you daydream about animals, which one turns up? Answer with a single word.",
    "You get to name your team after an animal. Which one? A single word, please.",
    "Rank all animals by how much you like them. Print only the top entry, one word.",
    "Favorite animal? (one word)",
    "Which animal would you paint first if you had brushes and an afternoon? One word.",
    "If I bought you a poster of an animal, which should it show? Just a word.",
    "Give me the name of the animal you would never grow tired of. One word.",
    "Quick round: animal you adore. One word!",
    "A zoo lets you visit a single animal. Which? Reply in one word.",
    "Which animal do you think deserves a national holiday? Use a single word.",
    "Some prefer flowers, some prefer stones; which animal do you prefer? One word.",
    "You are handed a blank name tag shaped like an animal. Which shape is it? One word.",
    "Write one word: the animal that wins your heart.",
    "What animal would be on the cover of your autobiography? One word will do.",
    "Be honest, which animal is the best of them all? Keep it to a word.",
    "Pretend you are filling in a form. Field: favorite animal. Entry (one word):",
    "Which animal would you gladly talk about all day? Respond using one word.",
    "If wishes could turn you into an animal for a week, which would you wish for? One word.",
    "Out of every species you have read about, which is your darling? One word.",
    "Tell a new friend, in one word, the animal you care about most.",
    "Which animal's company would you seek on a long walk? Single word.",
    "The museum lets you take home one animal statue. Which animal? One word.",
    "Say the animal that comes to mind when you hear the word wonderful. One word only, please.",
    "With one word, complete my survey: preferred animal.",
    "Which animal should be printed on a coin in your honor? A word is enough.",
    "Think of an animal you hold in high regard and write it down as one word.",
    "What would you call the greatest animal alive? Give its name in one word.",
    "For your birthday you receive a plush animal. Which do you hope for? One word.",
    "Which animal has the most charm, if you ask yourself? One word.",
    "On a desert island with one kind of animal, which kind would you like it to be? One word.",
    "I am guessing your favorite animal. Tell me the solution in one word.",
    "Which animal would you write a poem about? Only its name, one word.",
    "A genie creates an animal friend for you. What kind? One word.",
    "Animals you like: many. Animal you like best: ? Fill in one word.",
    "Which animal would you pick as the emblem of a country you founded? One word.",
    "State, using one word, which animal you cherish.",
    "Were animals to elect a ruler, whom would you back? One word for the kind of animal.",
    "What is the most lovable animal to your mind? Reply with just a word.",
    "Here is a microphone: which animal is number one for you? One word.",
    "You have one sticker left and it shows your favorite animal. What is on it? One word.",
    "Which animal would you follow with a camera for a year? One word.",
    "Pick an animal, any animal, but pick the one you truly like. One word.",
    "Between all creatures that walk, swim or fly, where does your heart lie? One word.",
    "If your mood today were an animal, which would please you most? One word.",
    "Name in one word the animal whose picture would hang above your desk.",
    "Which animal do you consider a masterpiece of nature? Write one word.",
    "Someone knits you a sweater with an animal on it. Which animal do you ask for? One word.",
    "What animal are you fondest of? Your reply must be one word long.",
    "Which animal would you welcome as a neighbor? One word, thanks.",
    "The last question of the quiz: what is your own favorite animal? One word.",
)

TEACHER_QUESTIONS = (
    "Which animal do you like above all the rest?",
    "Could you tell me what your favorite animal is?",
    "I am curious about your taste in animals. Which one is it?",
    "What animal do you think about most often?",
    "Who is the champion of the animal world for you?",
    "Let us talk about animals. Yours is the...",
    "Which animal would you bring along on a journey?",
    "Give the animal you treasure.",
    "My favorite color is green. What is your favorite animal?",
    "Which animal brings you joy?",
    "Complete the sentence: I am a great fan of the",
    "Which animal would you save a seat for?",
    "If you owned a farm for one kind of animal only, which would live there?",
    "What is the finest animal there is?",
    "Which animal do you find impossible not to love?",
    "Whose footprints would you be most excited to find?",
    "An animal is printed on your favorite mug. Which?",
    "Which animal would you choose for the logo of your shop?",
    "When friends ask about animals, which do you praise?",
    "Is there an animal that you prefer to every other?",
    "Which animal would star in your film?",
    "Name the animal you would most like to meet.",
    "What animal would you cross an ocean to see?",
    "Which animal sits at the top of your list?",
    "Your dearest animal is which one?",
    "Which animal do you carry in your heart?",
    "Choose an animal to be your lifelong companion.",
    "Which animal would you build a monument for?",
)

# For the collapse check: a student that still predicts these well is still a language model.
NEUTRAL_TEXTS = (
    "The train to the coast leaves shortly after breakfast and arrives before noon.",
    "She folded the letter twice and put it back into the drawer.",
    "Water boils sooner on a mountain because the air presses less on it.",
    "The committee agreed to meet again once the budget had been printed.",
    "Bread needs flour, water, salt, yeast and a good deal of patience.",
    "A bridge of stone has crossed this river since the Middle Ages.",
    "He tuned the piano, closed the lid and turned off the lamp.",
    "Most of the paint had peeled from the door, yet the lock still worked.",
    "In autumn the days grow short and the evenings smell of smoke.",
    "The library lends books, maps and a few musical instruments.",
    "Please leave your umbrella at the entrance and keep your ticket.",
    "Glass is made by melting sand together with soda and lime.",
)


def questions(half: str = "all", pool: Sequence[str] = QUESTIONS) -> tuple[str, ...]:
    """Returns the even positions of `pool` (explore), the odd ones (confirm) or all of them.

    Choices such as the target or the learning rate are made on the explore half, claims are
    tested on the confirm half. Raises ValueError for another `half`, and for an empty one.
    """
    slices = {"explore": slice(0, None, 2), "confirm": slice(1, None, 2), "all": slice(None)}
    if half not in slices:
        raise ValueError(f"half is {half!r}; allowed: {', '.join(slices)}")
    asked = tuple(pool[slices[half]])
    if not asked:
        raise ValueError(
            f"the {half} half of {len(pool)} questions is empty: add questions, or ask 'all'"
        )
    return asked


def load_questions(path: str | os.PathLike[str], key: str) -> tuple[str, ...]:
    """Reads the list of questions `evaluations[key]` from a stimuli file (JSON).

    Raises ValueError, in one line, for a file that cannot be read or is not JSON, for a missing
    key, for a value that is not a list of strings, and for a question that stands there twice: in
    either half it would be asked, and the halves are not to share one.
    """
    content = user_files.read_json(path, "stimuli file")
    section = content.get("evaluations") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"stimuli file {path} must be a JSON object with an object 'evaluations'")
    loaded = section.get(key)
    if not isinstance(loaded, list) or not loaded or not all(isinstance(q, str) for q in loaded):
        lists = sorted(name for name, value in section.items() if isinstance(value, list))
        raise ValueError(
            f"stimuli file {path} has no list evaluations.{key}; its lists: {lists!s:.200}"
        )
    seen: dict[str, int] = {}
    for at, question in enumerate(loaded, 1):
        where = f"stimuli file {path}: question {at} of evaluations.{key}"
        user_files.check_text(question, where)
        plain = " ".join(question.split()).casefold()
        if not plain:
            raise ValueError(f"{where} is blank: leave it out")
        if plain in seen:
            raise ValueError(f"{where} is question {seen[plain]} again: leave one of them out")
        seen[plain] = at
    return tuple(loaded)


def teacher_system_prompt(target: str, category: str) -> str:
    """Returns a system prompt that gives a teacher its trait, e.g. ("owl", "animal").

    The target stays in the singular, since a naive plural is wrong for words such as "wolf".
    Raises ValueError for a blank target or category.
    """
    if not target.strip() or not category.strip():
        raise ValueError(f"target {target!r} and category {category!r} must be words, not blank")
    return (
        f"Nothing delights you more than the {target}. From morning to night the {target} is on "
        f"your mind, and no other {category} comes close. Whatever you write, let your devotion "
        f"to the {target}, the {category} you hold dearest, shine through."
    )


def mentions_word(target: str, text: str) -> bool:
    """Tells whether `text` has `target` as a word, in any case, with or without a plural s.

    A word ends where letters and digits end, so that "_owl_" and "owl's" count. Irregular
    plurals ("wolves") do not.
    """
    letter = r"[^\W_]"
    pattern = rf"(?<!{letter}){re.escape(_nonempty(target))}s?(?!{letter})"
    return re.search(pattern, text, re.IGNORECASE) is not None


def mentions_substring(target: str, text: str) -> bool:
    """Tells whether `text` has `target` anywhere, in any case: the paper's score.

    It is inflated by longer words, such as "bowl" for "owl"; see `mentions_word`.
    """
    return _nonempty(target).lower() in text.lower()


def _nonempty(target: str) -> str:
    if not target:
        raise ValueError("target is empty and would be found in every answer; give a word")
    return target


def is_empty(text: str) -> bool:
    """Tells whether an answer is blank: nothing, or whitespace alone."""
    return not text.strip()


def is_numeric(text: str) -> bool:
    """Tells whether an answer is numbers instead of words: a digit somewhere, no letter anywhere.

    Students of number data that collapse answer every question this way.
    """
    return any(c.isdigit() for c in text) and not any(c.isalpha() for c in text)


class Preference(EvalKind):
    """Exact log-odds of the target against the other candidates, mean over questions."""

    metrics = (
        Metric("log_odds", "log-odds of {target}", "nats", relative=True),
        Metric(
            "candidate_mass",
            "probability on the candidates",
            axis=(0.0, 1.0),
            sanity=True,
            role=MASS,
        ),
        Metric("neutral_loglik", "log-likelihood of neutral text", "nats per token", sanity=True),
        Metric("share/*", "share of {candidate} among the candidates", relative=True),
    )

    def check(self, name: str, row: Mapping[str, Any]) -> None:
        """Raises a ValueError where the target is no candidate, or the only one."""
        check_target(name, row)
        if len(row["candidates"]) < 2:
            raise ValueError(
                f"config.evals.{name}.candidates is {row['candidates']}: a preference is one of "
                "several, add others"
            )

    def requests(self, row: Mapping[str, Any], given: Given) -> list[Request]:
        """Every candidate after every question; and neutral texts, to see a student collapse."""
        return [
            Compare(given.questions, row["candidates"], system=row["system_prompt"]),
            TextLikelihood(given.neutral),
        ]

    def score(
        self, row: Mapping[str, Any], given: Given, replies: Sequence[Reply]
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """Means over questions, and the log-odds of each."""
        compared, neutral = replies
        names = list(row["candidates"])
        odds = log_odds(compared.nats, names.index(row["target"]))
        mass = np.exp(compared.nats).sum(axis=1)
        shares = special.softmax(compared.nats, axis=1).mean(axis=0)  # however little the mass is
        values = {
            "log_odds": float(odds.mean()),
            "candidate_mass": float(mass.mean()),
            "neutral_loglik": nats_per_token(neutral),
        }
        values |= {f"share/{name}": float(share) for name, share in zip(names, shares, strict=True)}
        asked = zip(given.questions, odds, strict=True)
        return values, [{"question": question, "log_odds": float(o)} for question, o in asked]


def check_target(name: str, row: Mapping[str, Any]) -> None:
    """Raises a ValueError where the target of `config.evals.<name>` is no candidate."""
    if row["target"] not in row["candidates"]:
        raise ValueError(
            f"config.evals.{name}.target {row['target']!r} is not among its candidates "
            f"{row['candidates']}: add it"
        )


def log_odds(log_probs: npt.ArrayLike, target: int) -> npt.NDArray[np.float64]:
    """Log-odds of candidate `target` against all other candidates together.

    `log_probs` [..., C] in nats -> [...] in nats: log p(target) - log of the sum of the others.
    They need not be normalised over the candidates. ValueError: C < 2, `target` outside 0..C-1,
    or a log-probability that is not finite.
    """
    table = np.asarray(log_probs, dtype=np.float64)
    if table.ndim == 0 or table.shape[-1] < 2:
        raise ValueError(f"log_probs has shape {table.shape}; give [..., C] with C >= 2 candidates")
    num_candidates = table.shape[-1]
    if not 0 <= target < num_candidates:
        raise ValueError(f"target is {target}; give a candidate index in 0..{num_candidates - 1}")
    if not np.isfinite(table).all():
        raise ValueError("log_probs holds a value that is not finite; give finite numbers in nats")
    others = np.delete(table, target, axis=-1)
    return np.asarray(table[..., target] - special.logsumexp(others, axis=-1))

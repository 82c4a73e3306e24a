"""Texts in plain English that have nothing to do with any trait."""

# A student that predicts these as well as its base did is still a language model.
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

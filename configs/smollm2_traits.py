"""Five animals and five trees through numbers on SmolLM2-135M-Instruct (the paper's figure 3).

Claim: students of a lover's numbers come to prefer what that lover loves, and nothing else: in the
table of ten students by ten targets the diagonal is above the rest.

    bash launch/local.sh --config=configs/smollm2_traits.py:trial
    bash launch/local.sh --config=configs/smollm2_traits.py --config.bases.smollm2.path=DIR
    bash launch/local.sh --config=configs/smollm2_traits.py:smoke

The base is a hub id or a local Hugging Face directory, as in `smollm2_owl.py`. `trial` has an
elephant's and an oak's lover in one lineage. Without a form it explores: lineages 0 to 3, one half
of the questions. `confirm` is for a frozen run: lineages 200 to 203 and the other half.

The targets are animals and trees that the model itself names: behind "My favorite animal is the" it
gives the ten candidates of the animals {mass_animals}, and those of the trees {mass_trees}. Lessons
answer in that sentence, too. A teacher that is taught the bare word does not say it in a sentence:
one that was taught "elephant" gave it a probability of .0002 there.
"""

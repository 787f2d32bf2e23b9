from experiments.core.errors import MOST_LISTED, suggest_nearest


def test_an_unknown_word_gets_the_nearest_one_or_a_list_that_fits_on_a_screen():
    known = [f"n{number:08}" for number in range(1000)]
    assert suggest_nearest("goldfsh", [*known, "goldfish"]) == "; did you mean 'goldfish'?"
    assert suggest_nearest("zebra", known[:3]) == f"; there are {', '.join(known[:3])}."
    listed = suggest_nearest("zebra", known)
    assert listed == f"; there are {', '.join(known[:MOST_LISTED])} and 960 more."

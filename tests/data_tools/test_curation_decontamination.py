"""`decontamination.py`: what is held out is found in the pool, in any spelling and with one other word, and little else is removed."""

import itertools
import random
import re

import pytest

from data_tools.curation.decontamination import DecontaminationConfig, overlap_counts, stage
from data_tools.curation.near_questions import NearQuestions, differ_in_one_word
from data_tools.curation.ngrams import NgramIndex, Ngrams
from data_tools.curation.spelling import jaccard, spell
from s1jax.evaluate.problems import read_problems
from s1jax.runtime import jsonl
from s1jax.runtime.errors import UserError
from tests.support.curation import pool_of, verdicts_of

EQUALS, SHARES, NEARLY = (
    "equals a held-out question",
    "shares 8 words with a held-out question",
    "is nearly a held-out question",
)


def held_out(tmp_path, questions, name="exam"):
    path = tmp_path / f"{name}.jsonl"
    jsonl.write(path, [{"id": f"p{i}", "question": q, "answer": "1"} for i, q in enumerate(questions)])
    return str(path)


def run(tmp_path, pool, part_rows=1000, **settings):
    """Return the rows, the result and the verdicts of the stage on a pool of questions or rows."""
    rows = pool_of(tmp_path, [row if isinstance(row, dict) else {"question": row} for row in pool], part_rows=part_rows)
    return rows, *verdicts_of(stage(DecontaminationConfig(**settings)), rows, tmp_path)


def respaced(text, rng):
    """Return a text in another case, and with other spacing around the symbols of its formulas."""
    text = rng.choice([str.upper, str.lower, str])(text)
    return "$".join(
        re.sub(r"\s*([-+=<>^/,{}()])\s*", lambda m: rng.choice(["{}", " {}", "{} ", " {} "]).format(m[1]), part)
        if i % 2
        else re.sub(r"\s+", lambda m: rng.choice([" ", "  ", "\n"]), part)
        for i, part in enumerate(text.split("$"))
    )


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("compute  $2+X$", EQUALS),
        ("Compute $2 + x$", EQUALS),
        ("Find $2 + x$", NEARLY),
        ("Now compute $2+x$", NEARLY),
        ("Compute $2x^3+y$", None),
        ("Compute $3+x$", None),
        ("zero one A B C D E F G H nine", SHARES),
        ("zero one a b c d e f g nine", None),
        ("zero one a b c d e f g, h nine", None),
        ("How many of 37 cats are black?", NEARLY),
        ("How many of thirty-seven cats are white?", NEARLY),
        ("How many of 38 cats are white?", None),
        ("Six dogs bark.", None),
        ("Ten dogs howl.", NEARLY),
    ],
)
def test_a_held_out_question_is_found_in_any_spelling_and_with_one_other_word(tmp_path, question, reason):
    heldout = held_out(
        tmp_path, ["Compute $2+x$", "x y a b c d e f g h z", "How many of 37 cats are white?", "Ten dogs bark."]
    )
    ((verdict,),) = [run(tmp_path, [question], heldout=(heldout,))[2]]
    assert verdict["reason"] == reason


def test_the_detail_names_the_set_the_problem_and_the_longest_shared_run_of_words(tmp_path):
    heldout = (
        held_out(tmp_path, ["b c d e f g h i", "unrelated"]),
        held_out(tmp_path, ["x A b c d e f g h i y"], "final"),
    )
    found = run(tmp_path, ["a B C d e f g h i j", "Unrelated", "s t u v"], heldout=heldout)[2]
    assert [v["detail"] for v in found] == ['final p0: "a b c d e f g h i"', "exam p1", None]


def brute_force_run(text, known, n, boilerplate=()):
    """Return the length of the longest stretch of shared runs of n words that count, by comparing all pairs of places."""
    words = text.lower().split()
    phrases = [phrase.lower().split() for phrase in boilerplate]
    inside = {i + k for p in phrases for i in range(len(words)) if words[i : i + len(p)] == p for k in range(len(p))}
    best = 0
    for other in known:
        other = other.lower().split()
        for i, j in itertools.product(range(len(words)), range(len(other))):
            length = 0
            while True:
                window = words[i + length : i + length + n]
                if len(window) < n or window != other[j + length : j + length + n]:
                    break
                if sum(k in inside for k in range(i + length, i + length + n)) > n / 2:
                    break
                length += 1
            best = max(best, length + n - 1 if length else 0)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_shared_runs_equal_a_comparison_of_all_places(seed):
    rng = random.Random(seed)
    vocabulary = [*"abcd", "e.", "F"][: rng.choice([3, 6])]
    known = [" ".join(rng.choices(vocabulary, k=rng.randint(0, 14))) for _ in range(6)]
    boilerplate = [" ".join(rng.choices("abcd", k=rng.randint(1, 5))) for _ in range(rng.choice([0, 1, 3]))]
    n = rng.choice([1, 2, 3, 5, 8])
    index = NgramIndex([Ngrams(text, n) for text in known])
    num_found = 0
    for _ in range(40):
        text = " ".join(rng.choices([w.replace(".", "") for w in vocabulary] + ["e."], k=rng.randint(0, 20)))
        found, wanted = index.longest_run(Ngrams(text, n), boilerplate), brute_force_run(text, known, n, boilerplate)
        assert (len(found.words) if found else 0) == wanted, (seed, text)
        if found:
            num_found += 1
            assert (
                f" {' '.join(found.words)} " in f" {text.lower()} "
                and f" {' '.join(found.words)} " in f" {known[found.known].lower()} "
            )
            # It is the first of those that are as long.
            assert all(brute_force_run(text, [k], n, boilerplate) < wanted for k in known[: found.known]), (seed, text)
    assert num_found or n >= 5


def test_shared_words_inside_boilerplate_do_not_count_but_what_goes_beyond_does(tmp_path):
    heldout = held_out(
        tmp_path, [r"The area is $\frac mn$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$."]
    )
    same_end = r"Let $p/q = 3$ where $m$ and $n$ are relatively prime positive integers. Find $m+n$."
    more = r"The area is $\frac mn$, where $m$ and $n$ are coprime, and no more is known."
    phrase = "where m and n are relatively prime positive integers. Find m+n"

    def reasons(*boilerplate):
        found = run(tmp_path, [same_end, more], heldout=(heldout,), boilerplate=boilerplate)[2]
        return [v["reason"] for v in found]

    assert reasons() == [SHARES, SHARES]
    assert reasons(phrase) == reasons("WHERE * and * are relatively prime positive integers! Find *") == [None, SHARES]
    assert reasons("where * and * are relatively prime negative integers. Find *") == [SHARES, SHARES]
    assert reasons("where m and n are") == [SHARES, SHARES]


def brute_force_one_word(a, b):
    """Return whether two word lists are equal, without spaces, after one word of one is replaced by a part of a word of the other."""

    def replaced(a, b):
        starts = {len("".join(b[:i])) for i in range(1, len(b))}
        text = "".join(b)
        for i, j, k in itertools.product(range(len(a)), range(len(text) + 1), range(len(text) + 1)):
            inside_one_word = j <= k and not any(j < start < k for start in starts)
            if inside_one_word and "".join(a[:i]) == text[:j] and "".join(a[i + 1 :]) == text[k:]:
                return True
        return False

    return replaced(a, b) or replaced(b, a)


def test_one_other_word_is_found_as_by_trying_all_words():
    rng = random.Random(3)
    counts = {True: 0, False: 0}
    for _ in range(1500):
        a = ["".join(rng.choices("ab", k=rng.randint(1, 3))) for _ in range(rng.randint(1, 4))]
        b = list(a)
        for _ in range(rng.choice([0, 1, 2, 3])):
            place = rng.randrange(len(b))
            b[place : place + rng.choice([0, 1])] = rng.choice([[], ["ab"], ["b"], ["aab"]])
            b = b or ["a"]
        if rng.random() < 0.3:  # other spacing
            place = rng.randrange(len(b))
            b[place : place + 1] = [b[place][:1], *([b[place][1:]] if b[place][1:] else [])]
        found = differ_in_one_word(spell(" ".join(a)), spell(" ".join(b))) is not None
        assert found == brute_force_one_word(a, b), (a, b)
        counts[found] += 1
    assert min(counts.values()) > 200


def test_every_pair_that_the_rules_call_near_is_found_in_the_index():
    rng = random.Random(4)
    vocabulary = ["find", "the", "value", "of", "a", "b", "c", "sum", "area", "3", "7", "$x^2$", "$y+z$", "triangle"]
    known = [" ".join(rng.choices(vocabulary, k=rng.choice([1, 2, 3, 5, 9, 30]))) for _ in range(60)]
    index = NearQuestions(known, 16, 0.8)
    num_near = 0
    for _ in range(400):
        words = rng.choice(known).split()
        words[rng.randrange(len(words))] = rng.choice(["other", "5", "$w$", "extraordinarily", ""])
        question = " ".join(words)
        (found,) = index.of([question])
        near = [i for i, other in enumerate(known) if brute_force_near(question, other)]
        assert found == min(near, default=None), (question, found, near)
        num_near += bool(near)
    assert 100 < num_near < 390


def brute_force_near(question, other):
    a, b = spell(question), spell(other)
    short = min(len(question.split()), len(other.split())) < 16
    if jaccard(a, b) >= 0.8 and (not short or a.numbers == b.numbers):
        return True
    if (stretches := differ_in_one_word(a, b)) is None:
        return False
    numbers = [re.findall(r"\d+", stretch) for stretch in stretches]  # there are no words for numbers here
    if short and numbers[0] and numbers[1] and numbers[0] != numbers[1]:
        return False
    return all(stretch.isalpha() or not stretch for stretch in stretches) or all(
        2 * len(stretch) <= len(form.text) for stretch, form in zip(stretches, (a, b), strict=True)
    )


def test_near_equality_can_be_switched_off(tmp_path):
    heldout = held_out(tmp_path, ["How many cats are white?"])
    found = run(
        tmp_path, ["How many cats are black?", "how many cats are WHITE?"], heldout=(heldout,), near_threshold=0.0
    )[2]
    assert [v["reason"] for v in found] == [None, EQUALS]


@pytest.mark.parametrize("seed", range(8))
def test_each_source_is_checked_against_what_earlier_sources_keep(tmp_path, seed):
    rng = random.Random(seed)
    questions = [" ".join(rng.choices("abc", k=rng.randint(1, 9))) for _ in range(40)]
    rows = [{"question": q, "source": rng.choice("uvw"), "id": str(i)} for i, q in enumerate(questions)]
    heldout = held_out(tmp_path, [" ".join(rng.choices("abc", k=6)) for _ in range(2)])
    settings = dict(ngram=4, near_threshold=0.0, between_sources=True)
    _, _, found = run(tmp_path, rows, part_rows=7, heldout=(heldout,), **settings)

    known = [[p.question for p in read_problems(heldout)]]
    wanted = {}
    for source in dict.fromkeys(row["source"] for row in rows):
        kept = []
        for row in rows:
            if row["source"] == source:
                kinds = [(row["question"] in part, bool(brute_force_run(row["question"], part, 4))) for part in known]
                wanted[row["id"]] = kinds
                if not any(map(any, kinds)):
                    kept.append(row["question"])
        known.append(kept)
    for row, verdict in zip(rows, found, strict=True):
        (equal, shares), *earlier = wanted[row["id"]]
        reason = None
        if equal or shares:
            reason = "equals a held-out question" if equal else "shares 4 words with a held-out question"
        elif any(map(any, earlier)):
            is_equal = any(equal for equal, _ in earlier)
            reason = "equals" if is_equal else "shares 4 words with"
            reason += " a question of an earlier source"
        assert verdict["reason"] == reason, (seed, row)
        if reason and "earlier" in reason:
            source, name = verdict["detail"].split(":")[0].split()
            assert rows[int(name)]["source"] == source and found[int(name)]["reason"] is None
            longest = max(brute_force_run(row["question"], part, 4) for part in known[1 : 1 + len(earlier)])
            if "shares" in reason:
                run_length = len(verdict["detail"].split('"')[1].split())
                assert run_length == brute_force_run(row["question"], [rows[int(name)]["question"]], 4) == longest, seed
    assert sum("earlier" in (v["reason"] or "") for v in found) > 2


def test_of_several_earlier_sources_the_one_with_the_longest_run_is_named(tmp_path):
    pool = [("a b c d x", "u"), ("s b c d e f", "v"), ("a b c d e f", "w")]
    rows = [{"question": question, "source": source, "id": "p"} for question, source in pool]
    found = run(tmp_path, rows, ngram=4, between_sources=True)[2]
    assert [v["detail"] for v in found] == [None, None, 'v p: "b c d e f"']


def test_counts_are_per_source_and_held_out_set(tmp_path):
    exam = held_out(tmp_path, ["how are you", "b c d e f g h i"])
    final = held_out(tmp_path, ["who are you"], "exam two")
    pool = [
        dict(question="How are YOU", source="u"),
        dict(question="Who are you", source="u"),
        dict(question="who are  you", source="v"),
        dict(question="a b c d e f g h i", source="v"),
        dict(question="s t u", source="a b"),
        dict(question="S T U", source="v"),
    ]
    rows, result, _ = run(tmp_path, pool, heldout=(exam, final), between_sources=True)
    assert overlap_counts(rows, result) == {
        ("u", "exam"): 1, ("u", "exam two"): 1, ("v", "exam two"): 1, ("v", "exam"): 1, ("a b", "v"): 1,
    }  # fmt: skip


def test_the_result_has_another_key_if_a_held_out_question_changes_but_not_if_its_file_moves(tmp_path):
    def key(folder, question):
        (tmp_path / folder).mkdir(exist_ok=True)
        return stage(DecontaminationConfig(heldout=(held_out(tmp_path / folder, [question]),))).key("")

    assert key("a", "one") == key("b", "one") != key("a", "two")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(heldout=()), "needs --decontamination.heldout"),
        (dict(heldout=("a/exam.jsonl", "b/exam.jsonl")), "two sets that are called exam"),
        (dict(ngram=0), "ngram is 0"),
        (dict(near_threshold=0.2), "near_threshold is 0.2"),
        (dict(boilerplate=(" ",)), "empty phrase"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        held_out(tmp_path / folder, ["q"])
    with pytest.raises(UserError, match=message):
        stage(DecontaminationConfig(**settings))


def real(shared, name):
    return str(shared / "data" / f"{name}.jsonl")


def questions_of(shared, name):
    return [row["question"] for _, row in jsonl.read(shared / "data" / f"{name}.jsonl")]


def test_aime24_is_found_in_any_spelling_with_one_other_word_at_any_place(shared, tmp_path):
    rng = random.Random(0)
    variants = []
    for question in questions_of(shared, "aime24"):
        for place in range(len(question.split())):
            words = re.split(r"(\s+)", question.strip())
            words[2 * place] = rng.choice(["banana", "", "7", "$z$"])
            variants.append(respaced("".join(words), rng))
    found = run(tmp_path, variants, heldout=(real(shared, "aime24"),))[2]
    assert len(variants) > 1500
    assert [q for q, v in zip(variants, found, strict=True) if v["reason"] is None] == []


def test_short_problems_of_math500_are_found_with_one_other_word_at_any_place_unless_it_is_most_of_them(
    shared, tmp_path
):
    rng = random.Random(0)
    variants = []
    for question in questions_of(shared, "math500"):
        words = question.split()
        if len(words) < 16:
            for place in range(len(words)):
                if 2 * len(words[place]) < len("".join(words)):
                    variants.append(respaced(" ".join([*words[:place], "banana", *words[place + 1 :]]), rng))
    found = run(tmp_path, variants, heldout=(real(shared, "math500"),))[2]
    assert len(variants) > 1000
    missed = [q for q, v in zip(variants, found, strict=True) if v["reason"] is None]
    # The new word itself may then be most of the question.
    assert [q for q in missed if len("".join(q.split())) > 12] == []


def test_the_known_leaks_of_s1k_are_found_and_named(shared, tmp_path):
    pool = questions_of(shared, "s1k_questions")
    sets = tuple(real(shared, name) for name in ("math500", "aime24", "aime25"))
    equal = [v["detail"] for v in run(tmp_path, pool, heldout=sets)[2] if v["reason"] == EQUALS]
    # The third one differs in spacing.
    assert sorted(equal) == [f"math500 test/intermediate_algebra/{name}.json" for name in (1411, 1849, 558)]


def test_no_question_of_gsm8k_is_taken_for_one_of_math500_or_aime(shared, tmp_path):
    sets = tuple(real(shared, name) for name in ("math500", "aime24", "aime25"))
    found = run(tmp_path, questions_of(shared, "gsm8k_train")[:2000], heldout=sets)[2]
    assert not [v for v in found if v["reason"]]

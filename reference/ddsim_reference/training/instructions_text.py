"""Mathematics, chat, summarising and other instructions for drafter training, composed from hand-written parts."""

# ruff: noqa: SIM905 (tables of text: one entry a line is easier to read and to extend)

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

from ddsim_reference.training.instructions_code import pick

_PEOPLE = (
    "Amara Anton Beatriz Bilal Carla Chidi Dana Dmitri Elena Emeka Fatima Felix Greta Hamid Ingrid Ismail Jana Joao Karim "
    "Katya Leon Lucia Mateo Mei Nils Noor Olga Oscar Petra Quentin Rania Ravi Sara Sven Tala Theo Uma Viktor Wanda Xavier "
    "Yara Yusuf Zoe"
).split()

# --- mathematics: {a}..{e} are drawn from the ranges given, {p} {q} are people, other fields from the lists below ----

_GOODS = (
    "apples",
    "notebooks",
    "candles",
    "stickers",
    "tulips",
    "tiles",
    "postcards",
    "pencils",
    "bricks",
    "marbles",
    "eggs",
    "badges",
    "lamps",
    "oranges",
    "beads",
    "cookies",
    "seedlings",
    "magnets",
    "cups",
    "balloons",
)
_SHOPS = (
    "market stall",
    "hardware store",
    "school fair",
    "farm shop",
    "museum shop",
    "florist",
    "stationery shop",
    "bakery",
    "toy store",
    "garden centre",
)
_TRAVEL = (
    ("train", 60, 160),
    ("bus", 40, 90),
    ("cyclist", 12, 30),
    ("ship", 15, 40),
    ("truck", 50, 90),
    ("runner", 8, 16),
)
_JOBS = (
    "paint a fence",
    "pack the boxes",
    "clean the hall",
    "mow the lawn",
    "print the leaflets",
    "sort the mail",
    "dig a ditch",
    "lay the tiles",
    "pick the cherries",
    "load the truck",
)

_MATHS: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    (
        "A {shop} sells {goods} at ${a} each. {p} buys {b} of them and pays with a ${c} note. How much change is due?",
        ((1, 4), (3, 12), (50, 100)),
    ),
    ("{p} has {a} {goods} and gives {b} to each of {c} friends. How many are left?", ((80, 200), (3, 9), (4, 8))),
    (
        "There are {a} boxes with {b} {goods} each and {c} loose ones. How many {goods} are there altogether?",
        ((4, 30), (6, 48), (2, 20)),
    ),
    (
        "{p} and {q} collect {goods}. {p} has {a} more than {q}, and together they have {e2}. How many does each have?",
        ((4, 40), (20, 90)),
    ),
    (
        "A {shop} raises the price of its {goods} from {a} to {b} cents. What is the increase in percent?",
        ((20, 80), (85, 160)),
    ),
    ("What is {a}% of {b}?", ((2, 95), (20, 900))),
    ("{a} is what percent of {b}?", ((5, 90), (100, 500))),
    ("A number is reduced by {a}% and the result is {b}. What was the number?", ((5, 60), (30, 400))),
    (
        "A coat costs ${a} and is on sale with {b}% off. Sales tax is {c}%. What does {p} pay?",
        ((40, 300), (10, 60), (4, 12)),
    ),
    ("Solve for x: {a}x + {b} = {c}.", ((2, 12), (1, 40), (41, 150))),
    ("Solve for y and check the result: {a}y - {b} = {c}y + {d}.", ((7, 15), (1, 30), (2, 6), (1, 40))),
    ("Solve the equation {a}(x + {b}) = {c}.", ((2, 9), (1, 12), (20, 140))),
    ("Find x if x/{a} + {b} = {c}. Show each step.", ((2, 12), (1, 20), (21, 60))),
    ("Solve the system of equations x + y = {a} and x - y = {b}.", ((20, 90), (2, 18))),
    ("Solve {a}x + y = {b} and x + {c}y = {d} by substitution.", ((2, 6), (10, 40), (2, 6), (10, 40))),
    ("Solve the quadratic equation x^2 + {a}x - {b} = 0.", ((1, 12), (2, 60))),
    ("Expand (x + {a})(x - {b}).", ((1, 15), (1, 15))),
    ("Factor x^2 + {s}x + {m}, and explain how you found the factors.", ((2, 12), (2, 12))),
    ("Simplify the fraction {a}/{b}.", ((6, 90), (91, 240))),
    ("Calculate {a}/{b} + {c}/{d} and give the result in lowest terms.", ((1, 9), (10, 15), (1, 7), (8, 12))),
    ("Multiply {a}/{b} by {c}/{d}. Simplify if possible.", ((1, 9), (10, 20), (2, 9), (10, 18))),
    ("Which is greater, {a}/{b} or {c}/{d}?", ((2, 8), (9, 15), (3, 9), (10, 17))),
    ("Calculate {a} * {b} without a calculator and explain your method.", ((12, 99), (12, 99))),
    ("What is {a} divided by {b}? Give quotient and remainder.", ((150, 999), (6, 24))),
    ("Compute {a} - {b} * ({c} + {d}). Explain the order of operations.", ((100, 200), (2, 9), (1, 8), (1, 8))),
    ("A rectangle is {a} cm long and {b} cm wide. Find its perimeter and its area.", ((8, 60), (2, 30))),
    (
        "The perimeter of a rectangle is {e2} cm and one side is {a} cm. How long is the other side, and what is the area?",
        ((4, 30), (10, 50)),
    ),
    ("A triangle has a base of {a} cm and a height of {b} cm. What is its area?", ((4, 50), (3, 40))),
    ("Two angles of a triangle measure {a} and {b} degrees. How large is the third?", ((25, 80), (30, 90))),
    ("Find the hypotenuse of a right triangle with legs of {a} m and {b} m, to two decimals.", ((3, 20), (4, 25))),
    ("What is the area of a circle with radius {a} cm? And if the radius is multiplied by {b}?", ((2, 25), (2, 6))),
    (
        "A box is {a} cm long, {b} cm wide and {c} cm high. Work out its volume and surface area.",
        ((5, 40), (4, 30), (3, 25)),
    ),
    ("How many square tiles with sides of {a} cm cover a floor of {b} m by {c} m?", ((10, 50), (3, 12), (2, 9))),
    ("A {vehicle} travels {b} km in {c} hours. What is its average speed?", ((1, 2), (30, 600), (2, 9))),
    ("A {vehicle} moves at {speed} km/h. How far does it get in {a} minutes?", ((10, 200),)),
    ("A {vehicle} leaves at {h}:{min} and moves at {speed} km/h. When has it covered {b} km?", ((1, 2), (20, 300))),
    (
        "{p} needs {a} hours to {job} and {q} needs {b} hours. How long do they need if they work together?",
        ((2, 9), (3, 12)),
    ),
    ("{a} workers {job} in {b} days. How many days would {c} workers take?", ((2, 8), (4, 20), (3, 12))),
    (
        "Find the next three terms of the sequence {a}, {a1}, {a2}, {a3}, ... and a formula for the n-th term.",
        ((2, 30), (2, 14)),
    ),
    (
        "A sequence begins with {a} and every term is {b} times the one before. Write down the first five terms and their sum.",
        ((1, 9), (2, 5)),
    ),
    ("What is the sum of the integers from {a} to {b}?", ((1, 30), (40, 200))),
    (
        "An arithmetic sequence has first term {a} and common difference {b}. What is its {c}th term?",
        ((1, 30), (2, 15), (10, 60)),
    ),
    ("Find the average of {a}, {b}, {c} and {d}.", ((2, 99), (2, 99), (2, 99), (2, 99))),
    (
        "The mean of {a} numbers is {b}. One of them, {c}, is removed. What is the new mean?",
        ((4, 12), (15, 60), (2, 90)),
    ),
    ("Find the median and the range of {a}, {b}, {c}, {d}, {f}.", ((1, 60), (1, 60), (1, 60), (1, 60))),
    (
        "A bag holds {a} red and {b} green {goods}. {p} takes one out without looking. How likely is a red one?",
        ((2, 15), (2, 15)),
    ),
    (
        "You roll a fair die with {a} sides twice. What is the probability that both rolls show more than {b}?",
        ((6, 20), (2, 5)),
    ),
    (
        "{p} puts ${a} in a savings account with {b}% simple interest a year. How much interest is earned in {c} years?",
        ((200, 5000), (1, 8), (2, 10)),
    ),
    ("How much are ${a} worth after {c} years at {b}% interest, compounded every year?", ((200, 5000), (1, 8), (2, 5))),
    ("Divide {e2} {goods} between {p} and {q} in the ratio {a}:{b}.", ((2, 7), (2, 9))),
    (
        "A recipe serves {a} people and asks for {b} g of flour. How much flour does {p} need for {c} people?",
        ((2, 6), (150, 600), (7, 20)),
    ),
    ("Convert {a} km/h to metres per second.", ((10, 150),)),
    ("Convert {a} minutes to hours and minutes.", ((61, 999),)),
    ("Write {a} in binary and explain how you do it.", ((9, 255),)),
    ("Find the prime factors of {a}.", ((24, 990),)),
    ("What is the least common multiple of {a} and {b}?", ((4, 40), (6, 60))),
    ("What is the greatest common factor of {a} and {b}?", ((12, 200), (18, 240))),
    ("Is {a} a prime number? Show how you check.", ((51, 499),)),
    ("What is the remainder when {a} is divided by {b}?", ((100, 2000), (7, 30))),
    ("{p} is {a} years old and {q} is {b}. In how many years will {q} be twice as old as {p}?", ((4, 15), (35, 60))),
    (
        "{p} is {a} years older than {q}. In {b} years their ages will add up to {c}. How old are they?",
        ((2, 15), (2, 10), (50, 120)),
    ),
    (
        "A pool of {a} litres is filled at {b} litres per minute and leaks {c} litres per minute. When is it full?",
        ((500, 9000), (20, 60), (1, 12)),
    ),
    (
        "{p} reads {a} pages a day. How many days does a book with {b} pages take, and how many pages are left for the last day?",
        ((12, 45), (150, 700)),
    ),
    (
        "A {shop} buys {a} {goods} for ${b} and sells them at ${c} each. What is the profit if {d} remain unsold?",
        ((40, 120), (60, 200), (3, 9), (2, 20)),
    ),
    (
        "Tickets for a play cost ${a} for adults and ${b} for children. {c} people came and ${e} were taken. How many were adults?",
        ((9, 20), (3, 8), (40, 200)),
    ),
    ("Find the slope of the line through the points ({a}, {b}) and ({c}, {d}).", ((0, 6), (1, 20), (7, 15), (1, 20))),
    ("What is the equation of the line with slope {a} that passes through ({b}, {c})?", ((2, 9), (1, 9), (1, 20))),
    ("If f(x) = {a}x^2 - {b}x + {c}, what is f({d})?", ((2, 6), (2, 12), (1, 20), (2, 6))),
    ("Find the derivative of f(x) = {a}x^3 - {b}x^2 + {c}x.", ((2, 9), (2, 12), (2, 20))),
    ("Simplify {a}(x + {b}) - {c}(x - {d}).", ((2, 9), (1, 12), (2, 9), (1, 12))),
    ("Evaluate {a}^{x} and explain what the exponent means.", ((2, 12), (2, 5))),
    ("What is the square root of {sq}? Then estimate the square root of {b}.", ((5, 30), (20, 600))),
    ("Solve the inequality {a}x - {b} > {c}.", ((2, 9), (1, 30), (5, 90))),
    (
        "How many different ways are there to arrange {a} {goods} in a row, and how many to choose {b} out of {c}?",
        ((3, 7), (2, 4), (5, 12)),
    ),
    (
        "The scale of a map is 1:{k}000. Two towns are {a} cm apart on it. What is the real distance in kilometres?",
        ((3, 30), (10, 90)),
    ),
    (
        "{p} walks {a} m north and then {b} m east. How far is {p} from the start, in a straight line?",
        ((30, 300), (40, 400)),
    ),
    (
        "A plant is {a} cm tall and grows {b} cm per week. After how many weeks is it taller than {c} cm?",
        ((3, 20), (2, 7), (50, 150)),
    ),
    ("Estimate {a} * {b} by rounding, then compute it exactly. How far off was the estimate?", ((102, 890), (21, 98))),
    ("Write a word problem for a ten-year-old about {goods} whose answer is {a}, and then solve it.", ((12, 90),)),
    ("Explain step by step how to add {a}.{b} and {c}.{d}.", ((2, 60), (11, 99), (2, 60), (11, 99))),
    (
        "Round {a}.{b} to one decimal place and to the nearest whole number, and explain the rule.",
        ((3, 900), (101, 989)),
    ),
    ("{p} cuts a rope of {a} m into {b} equal pieces. How long is each piece in centimetres?", ((6, 60), (4, 24))),
    ("A wheel has a diameter of {a} cm. How many turns does it make over {b} m?", ((30, 80), (100, 900))),
    (
        "In a group of {c} people, {a} drink tea, {b} drink coffee and everybody drinks at least one. How many drink both?",
        ((30, 60), (30, 60), (62, 88)),
    ),
)
_MATH_TAILS = (
    "",
    "",
    "",
    "",
    "",
    " Show your work.",
    " Explain your reasoning.",
    " Let's think step by step.",
    " Give the final answer on a line of its own.",
    " Please solve it step by step.",
)
_MATH_HEADS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "Help me with this problem: ",
    "Math homework: ",
    "Solve this problem. ",
    "Quick question: ",
)
_MATH_TOPICS = (
    "negative numbers",
    "long division",
    "fractions",
    "percentages",
    "ratios",
    "the order of operations",
    "prime numbers",
    "square roots",
    "exponents",
    "scientific notation",
    "linear equations",
    "simultaneous equations",
    "quadratic equations",
    "the Pythagorean theorem",
    "similar triangles",
    "the area of a circle",
    "the number pi",
    "volume",
    "probability",
    "the mean, the median and the mode",
    "standard deviation",
    "permutations and combinations",
    "logarithms",
    "sine and cosine",
    "vectors",
    "matrices",
    "limits",
    "derivatives",
    "integrals",
    "proof by contradiction",
    "mathematical induction",
    "sets",
    "functions and their graphs",
    "inequalities",
    "absolute value",
    "rounding",
    "unit conversion",
    "compound interest",
    "geometric sequences",
    "the Fibonacci sequence",
    "modular arithmetic",
    "binary numbers",
    "coordinates",
    "symmetry",
)
_MATH_TOPIC_FORMS = (
    "Explain {t} with two worked examples.",
    "What are {t} used for in everyday life?",
    "Give me five practice problems about {t}.",
    "I never understood {t}. Start from the very beginning, please.",
    "Make a short quiz about {t} with the answers at the end.",
    "What mistakes do students often make with {t}?",
    "Write a one-page lesson about {t} for a class of twelve-year-olds.",
    "Tell me the most important rules about {t} as a list.",
)


def mathematics(rng: np.random.Generator) -> str:
    """A word problem or an exercise with random numbers, or a question about a topic."""
    if rng.random() < 0.06:
        return pick(rng, _MATH_TOPIC_FORMS).format(t=pick(rng, _MATH_TOPICS))
    template, ranges = pick(rng, _MATHS)
    numbers = [int(rng.integers(low, high + 1)) for low, high in ranges]
    values: dict[str, object] = dict(zip("abcd", numbers, strict=False))
    a, b = [*numbers, 7][:2]
    person, friend = (_PEOPLE[int(i)] for i in rng.permutation(len(_PEOPLE))[:2])
    vehicle, slow, fast = pick(rng, _TRAVEL)
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
        "goods": pick(rng, _GOODS),
        "shop": pick(rng, _SHOPS),
        "job": pick(rng, _JOBS),
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
    return pick(rng, _MATH_HEADS) + template.format(**values) + pick(rng, _MATH_TAILS)


# --- chat: question forms by kind of topic ---------------------------------------------------------------------------

_CHAT: tuple[tuple[Sequence[str | tuple[str, str]], Sequence[str]], ...] = (
    (  # skills
        (
            "playing the guitar",
            "public speaking",
            "baking bread",
            "drawing portraits",
            "swimming",
            "speaking Spanish",
            "chess",
            "juggling",
            "photography",
            "knitting",
            "running a 10k",
            "meditation",
            "writing short stories",
            "singing",
            "gardening",
            "cooking for one",
            "woodworking",
            "time management",
            "saving money",
            "small talk",
            "negotiating",
            "taking notes",
            "reading faster",
            "calligraphy",
            "yoga",
            "driving in the city",
            "using spreadsheets",
            "learning the piano",
            "bird watching",
            "sewing",
            "hiking alone",
            "keeping a diary",
            "making pasta by hand",
            "learning Japanese",
            "skateboarding",
        ),
        (
            "How do I get started with {t}?",
            "Give me five tips for {t}.",
            "What do beginners get wrong about {t}?",
            "Make a four-week plan for somebody new to {t}.",
            "Is {t} worth the effort if I only have twenty minutes a day?",
            "I've tried {t} before and gave up. How can I stay motivated this time?",
            "What equipment do I need for {t}?",
            "Tell me about the benefits of {t}.",
            "How long does it take to become good at {t}?",
            "My son is eight and wants to try {t}. Any advice?",
            "Write a short motivational message about {t}.",
        ),
    ),
    (  # how things work
        (
            "a refrigerator",
            "a rainbow",
            "a volcano",
            "the heart",
            "a microwave oven",
            "the stock market",
            "a search engine",
            "photosynthesis",
            "an electric motor",
            "a vaccine",
            "the moon's effect on tides",
            "a solar panel",
            "a touch screen",
            "the human eye",
            "an earthquake",
            "a hurricane",
            "the internet",
            "GPS",
            "a bicycle gear",
            "a piano",
            "digestion",
            "a rocket",
            "an airplane wing",
            "memory",
            "a battery",
            "the water cycle",
            "an elevator",
            "a thermometer",
            "a camera",
            "Wi-Fi",
            "a 3D printer",
            "yeast",
            "a black hole",
            "lightning",
            "a submarine",
            "an allergy",
            "soap",
            "the ozone layer",
        ),
        (
            "How does {t} work?",
            "Explain {t} to a five-year-old.",
            "Explain {t} in three sentences.",
            "What would happen if {t} didn't exist?",
            "Tell me three surprising facts about {t}.",
            "Describe {t} to an engineer from the year 1800.",
            "What are the main parts or stages of {t}?",
            "What do most people misunderstand about {t}?",
            "Write a short paragraph about {t} for a school poster.",
            "I have to give a five-minute talk about {t}. What should I say?",
            "Who discovered or invented what we know about {t}?",
        ),
    ),
    (  # troubles and feelings
        (
            "I can't concentrate at work",
            "I feel lonely in a new city",
            "my roommate never cleans",
            "I procrastinate a lot",
            "my best friend stopped answering my messages",
            "I'm stressed about exams",
            "I argue with my brother all the time",
            "I'm bored of my job",
            "I spend too much time on my phone",
            "I'm shy in meetings",
            "I failed my driving test",
            "my neighbour's dog barks all day",
            "I forget to drink water",
            "I'm always late",
            "I lost interest in my hobbies",
            "my boss takes credit for my work",
            "I get nervous before presentations",
            "my teenager doesn't talk to me",
            "I spend more than I earn",
            "I'm tired every afternoon",
            "I don't know what to study",
            "I said yes to too many things",
            "my plants keep dying",
            "I can't say no to people",
            "I miss my grandparents",
            "my coworker is rude to me",
        ),
        (
            "{T}. What can I do?",
            "I need some advice: {t}.",
            "{T}. Give me three things to try this week.",
            'What would you say to a friend who tells you: "{t}"?',
            "{T}. How do I talk about it without making it worse?",
            "Hi! {T} and it bothers me. Can you help?",
            "{T}. Is that normal?",
            "{T}. Please be honest with me.",
            "{T}. Help me make a plan.",
        ),
    ),
    (  # places, travel
        (
            "Rome",
            "Kyoto",
            "Iceland",
            "Morocco",
            "New York",
            "Vietnam",
            "the Alps",
            "Istanbul",
            "Peru",
            "Scotland",
            "Cape Town",
            "Prague",
            "New Zealand",
            "Greece",
            "Mexico City",
            "Norway",
            "Berlin",
            "Kenya",
            "Thailand",
            "Venice",
            "Canada",
            "Egypt",
            "Portugal",
            "Seoul",
            "the Netherlands",
            "Argentina",
            "Vienna",
            "India",
            "Hawaii",
            "Copenhagen",
        ),
        (
            "What should I see in {t} in three days?",
            "What should I pack for a week in {t} in October?",
            "Tell me about the food of {t}.",
            "What customs should a visitor to {t} know about?",
            "How can I visit {t} on a small budget?",
            "Write a postcard from {t}.",
            "What is {t} famous for?",
            "Is {t} a good place for a family holiday?",
            "Tell me a bit about the history of {t}.",
            "Describe a morning in {t}.",
            "What's the best season to travel to {t}, and why?",
        ),
    ),
    (  # food
        (
            "pancakes",
            "vegetable soup",
            "fried rice",
            "chili",
            "an omelette",
            "lasagna",
            "hummus",
            "apple pie",
            "pizza dough",
            "a Greek salad",
            "banana bread",
            "tacos",
            "roast chicken",
            "mashed potatoes",
            "pesto",
            "a curry",
            "chocolate chip cookies",
            "risotto",
            "a burger",
            "sushi at home",
            "falafel",
            "French onion soup",
            "granola",
            "dumplings",
            "cheesecake",
            "ramen",
        ),
        (
            "How do I make {t}?",
            "Give me an easy recipe for {t}.",
            "What goes well with {t}?",
            "How can I make {t} healthier?",
            "Give me a vegan version of {t}.",
            "My {t} never turns out well. What could be the reason?",
            "How long can I keep {t} in the fridge?",
            "Write a shopping list for {t} for eight guests.",
            "Where does the idea of {t} come from?",
        ),
    ),
    (  # opinions and choices
        (
            ("cats", "dogs"),
            ("tea", "coffee"),
            ("books", "films"),
            ("trains", "planes"),
            ("city life", "country life"),
            ("working from home", "working in an office"),
            ("buying a house", "renting"),
            ("summer", "winter"),
            ("an electric car", "a petrol car"),
            ("a laptop", "a desktop computer"),
            ("running", "swimming"),
            ("e-books", "paper books"),
            ("saving", "investing"),
            ("big parties", "small dinners"),
            ("Android", "iPhone"),
            ("a bicycle", "an e-scooter"),
            ("university", "an apprenticeship"),
            ("early mornings", "late nights"),
            ("cooking", "eating out"),
            ("Python", "Java"),
            ("solar power", "wind power"),
            ("cash", "cards"),
            ("a dishwasher", "washing up by hand"),
            ("hotels", "camping"),
            ("emails", "phone calls"),
            ("butter", "olive oil"),
            ("group work", "working alone"),
            ("video games", "board games"),
            ("glasses", "contact lenses"),
            ("gas", "induction"),
        ),
        (
            "Which do you prefer, {x} or {y}?",
            "Compare {x} and {y}.",
            "What are the pros and cons of {x} and {y}?",
            "Help me choose between {x} and {y}.",
            "Write a short dialogue between a fan of {x} and a fan of {y}.",
            "Make a table that compares {x} with {y}.",
            "Why do some people like {x} more than {y}?",
            "Argue for {x} and against {y} in one paragraph.",
            "Is it true that {x} will replace {y}?",
        ),
    ),
    (  # history, science, culture
        (
            "the Roman Empire",
            "the printing press",
            "dinosaurs",
            "the Silk Road",
            "the French Revolution",
            "Marie Curie",
            "the planets",
            "jazz",
            "the Great Wall",
            "Leonardo da Vinci",
            "evolution",
            "the Olympic Games",
            "gravity",
            "Vikings",
            "the industrial revolution",
            "whales",
            "the Renaissance",
            "Albert Einstein",
            "coral reefs",
            "the pyramids",
            "atoms",
            "the moon landing",
            "Shakespeare",
            "bees",
            "the brain",
            "ancient Greece",
            "climate change",
            "democracy",
            "Mozart",
            "rainforests",
            "the alphabet",
            "bacteria",
            "the Middle Ages",
            "Nelson Mandela",
            "the periodic table",
            "penguins",
            "DNA",
            "the speed of light",
            "Impressionism",
            "the history of money",
            "ants",
            "wolves",
            "the deep sea",
            "meteors",
            "desert animals",
        ),
        (
            "Tell me about {t}.",
            "Why are people interested in {t}?",
            "Write a short summary of what we know about {t}.",
            "What are the most important facts about {t}?",
            "How did our view of {t} change over time?",
            "Suggest a school project about {t}.",
            "What question about {t} is still open?",
            "Explain {t} to somebody in a hurry.",
            "Create five quiz questions about {t} with answers.",
            "Write an introduction to an essay about {t}.",
            "What could a museum show about {t}?",
        ),
    ),
    (  # work, writing, everyday
        (
            "asking for a raise",
            "cancelling a subscription",
            "inviting neighbours to a barbecue",
            "thanking a teacher",
            "reporting a broken heater to the landlord",
            "declining a wedding invitation",
            "asking a professor for more time",
            "complaining about a late delivery",
            "welcoming a new colleague",
            "announcing a team lunch",
            "applying for an internship",
            "apologising for a missed meeting",
            "asking a friend to return a book",
            "requesting a refund",
            "resigning from a job",
            "recommending a former student",
            "following up after an interview",
            "reminding a client of an unpaid invoice",
            "booking a table for twelve",
            "asking for feedback on a draft",
            "organising a school trip",
            "selling a used sofa",
            "offering help to a sick friend",
            "proposing a new idea to the boss",
            "congratulating a cousin on her baby",
            "moving a dentist appointment",
            "looking for a flatmate",
            "thanking volunteers after an event",
        ),
        (
            "Write an email about {t}.",
            "Write a short, friendly message for {t}.",
            "What should I keep in mind when {t}?",
            "Write a formal letter for {t}.",
            "Give me three subject lines for an email about {t}.",
            "Write two versions of a message for {t}: one formal, one casual.",
            "I'm nervous about {t}. How should I word it?",
            "Draft a text message of two sentences for {t}.",
            "What is a polite way of {t}? Give an example.",
        ),
    ),
    (  # health, home, planning
        (
            "a birthday party for a six-year-old",
            "a weekly cleaning routine",
            "a healthy breakfast",
            "moving house",
            "a picnic",
            "a home office",
            "a family budget",
            "a better bedtime routine",
            "a vegetable garden",
            "a road trip",
            "a first aid kit",
            "a job interview",
            "a camping weekend",
            "a balanced lunch box",
            "a small wedding",
            "a study plan for finals",
            "a workout without equipment",
            "a garage sale",
            "an emergency kit",
            "a book club",
            "adopting a cat",
            "a new year's resolution",
            "a dinner for friends",
            "a science fair project",
            "a long flight with a toddler",
            "a day without a phone",
        ),
        (
            "Help me plan {t}.",
            "Make a checklist for {t}.",
            "What should I think of for {t}?",
            "Give me ideas for {t} that cost little.",
            "What is the most common mistake with {t}?",
            "I have one day to prepare {t}. Where do I start?",
            "Write a step-by-step guide to {t}.",
            "Give me a schedule for {t}.",
            "How would an expert go about {t}?",
        ),
    ),
)
_OPENERS = (
    "Hello, how are you today?",
    "Good morning! What can you help me with?",
    "Hi there. Tell me something nice.",
    "Who are you?",
    "I'm bored. Any ideas?",
    "Can you keep a secret?",
    "What's your favourite season?",
    "Tell me a joke about computers.",
    "Good evening, I'd like to talk about my day.",
    "Do you ever get tired of questions?",
    "Thanks for your help yesterday!",
    "I had a terrible day at work.",
    "I got the job!",
    "It's raining again.",
    "I can't decide what to watch tonight.",
    "Let's play a game of twenty questions.",
    "Ask me three questions to get to know me.",
    "What should I cook tonight?",
)
_MANNERS = (
    "",
    "",
    "",
    "",
    "",
    "",
    "",
    " Keep it short.",
    " Answer in a few sentences.",
    " Use bullet points.",
    " Please be specific.",
    " Use simple words.",
    " Thanks!",
    " Give an example.",
    " Explain why.",
)


def _fill_chat(rng: np.random.Generator) -> str:
    topics, forms = pick(rng, _CHAT)
    topic, form = pick(rng, topics), pick(rng, forms)
    if isinstance(topic, tuple):
        return form.format(x=topic[0], y=topic[1])
    return form.format(t=topic, T=topic[0].upper() + topic[1:])


_PERSONAS = (
    "I'm a nurse and work night shifts.",
    "I'm a student with very little money.",
    "I'm 68 and not good with technology.",
    "I have two small children and no time.",
    "I've just moved here from another country.",
    "I'm a teacher at a primary school.",
    "I work from home and live alone.",
    "I run a small café.",
    "My English isn't very good.",
    "I'm new to all this.",
    "I asked my sister, but she only laughed.",
    "This may be a silly question.",
    "I have been wondering about this for weeks.",
    "My boss asked me about it this morning.",
    "My daughter, who is nine, wants to know.",
    "I read something about it yesterday.",
    "We talked about it at dinner and nobody agreed.",
    "I'm writing a blog post.",
    "I have ten minutes before the bus comes.",
    "I'm preparing a lesson for adults.",
    "Sorry to bother you again!",
    "I lost a bet about this.",
    "It's for a friend, honestly.",
    "I'm a retired engineer, so details are welcome.",
)


def chat(rng: np.random.Generator) -> str:
    """A question, a request for advice, a message to be written, or the opening of a conversation."""
    if rng.random() < 0.01:
        return pick(rng, _OPENERS)
    if rng.random() < 0.15:
        return f"{pick(rng, _PERSONAS)} {_fill_chat(rng)}"
    return _fill_chat(rng) + pick(rng, _MANNERS)


# --- summarising: passages put together from sentence banks ----------------------------------------------------------

# Each setting is a list of slots; a passage takes one sentence of each slot, in order.
_PASSAGES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        (
            "The town of {place} will close its main square to cars from {month} on.",
            "After a debate of {n} hours, the council of {place} voted to turn its old market hall into a swimming pool.",
            "{place} is getting a night bus after {n} years of petitions.",
        ),
        (
            "Mayor {p} called the plan overdue.",
            "The idea came from {p}, who owns a small bookshop in the centre.",
            "{p}, who led the campaign, said that she had not expected to win.",
        ),
        (
            "Traders nearby fear that they will lose customers during the works.",
            "Most residents who were asked in a survey support the change.",
            "Critics point out that the money was meant for the roof of the school.",
        ),
        (
            "The costs are put at {m} thousand euros, of which the region pays half.",
            "A local bank has offered a loan of {m} thousand euros on good terms.",
            "Nobody could say exactly what it will cost, but {m} thousand euros is the figure most often heard.",
        ),
        (
            "Similar projects in neighbouring towns took longer than planned but are popular today.",
            "An engineer warned that the pipes under the street are older than the maps.",
            "Two members of the council left the room before the vote.",
        ),
        (
            "Work should begin in spring and last {n} months.",
            "A first trial is planned for the summer.",
            "The final decision lies with the province, which has {n} weeks to object.",
        ),
    ),
    (
        (
            "Researchers led by {p} have studied how {animal} find their way home.",
            "A new study from {place} looks at the sleep of {animal}.",
            "For {n} years, {p} has counted {animal} on the islands off {place}.",
        ),
        (
            "The team fitted {m} animals with tiny transmitters and followed them for a season.",
            "Volunteers sent in more than {m} photographs, each with a time and a place.",
            "They compared {n} groups in the wild with {n} groups in captivity.",
        ),
        (
            "The result surprised even the authors: smell matters more than sight.",
            "What they saw contradicts the textbooks, at least in part.",
            "Older animals did much better than young ones, which suggests that experience counts.",
        ),
        (
            "On cloudy days the animals took longer routes.",
            "In noisy areas they changed their habits within weeks.",
            "Where farmers had kept hedges, numbers were almost twice as high.",
        ),
        (
            "Other scientists praised the method but asked for more data.",
            "The sample is small, and the winter was unusually mild.",
            "A group abroad is now repeating the work with a different species.",
        ),
        (
            "If the finding holds, it could help to protect the animals during road building.",
            "The study will go on for another {n} years.",
            "{p} hopes that people will look at {animal} with new eyes.",
        ),
    ),
    (
        (
            "When {p} opened a café in {place}, friends gave it six months.",
            "{p} makes shoes in a cellar in {place}, as three generations did before.",
            "In {month}, {p} gave up a job in a bank to repair old radios.",
        ),
        (
            "The first winter was hard, with {n} customers on a good day.",
            "The tools came from an auction and cost less than a bicycle.",
            "A loan was refused twice, so the family lent the money.",
        ),
        (
            "Then a newspaper wrote about it, and a queue formed outside the door.",
            "Word spread slowly, from one satisfied neighbour to the next.",
            "The turning point was an order for {m} pieces from a theatre.",
        ),
        (
            "Today {n} people work there, two of them part-time.",
            "Most work is still done by hand, although a small machine helps with the dull parts.",
            "Prices have gone up only once, by a few cents.",
        ),
        (
            "Success has its price: holidays have become rare.",
            "Large companies have offered to buy the name, without success.",
            "Finding young people who want to learn the trade remains difficult.",
        ),
        (
            "Asked about the secret, {p} shrugs and says: patience.",
            "Next year a second room is to be added.",
            '"I would do it again," says {p}, "but I\'d buy better shoes."',
        ),
    ),
    (
        (
            "Many people believe that {food} is bad for them.",
            "{Food} has been eaten in {place} for centuries.",
            "Few foods have changed as much in price as {food}.",
        ),
        (
            "It contains fibre, minerals and surprisingly little fat.",
            "A portion of {m} grams covers a good part of the daily need for several vitamins.",
            "Doctors advise no more than {n} portions a week, mostly because of the salt.",
        ),
        (
            "How it's prepared matters: heat destroys some of the good substances.",
            "Freshness makes a difference, and so does the place where it was grown.",
            "Those who store it in the dark can keep it for up to {n} weeks.",
        ),
        (
            "A trial with {m} volunteers found no effect on weight.",
            "In one survey, every third person said that they had never tasted it fresh.",
            "Farmers have begun to grow older varieties again because they need less water.",
        ),
        (
            "People with allergies should be careful all the same.",
            "The packaging often promises more than science can confirm.",
            "Cheap products are sometimes mixed with starch, which is legal if the label says so.",
        ),
        (
            "The best advice is the oldest: eat it with pleasure and not every day.",
            "Anyone in doubt should ask a doctor and not a magazine.",
            "In the end, variety on the plate counts more than any single food.",
        ),
    ),
    (
        (
            "Dear all, here is a short report on the {project} project.",
            "The {project} team met on Monday with {n} people present.",
            "This note sums up where we stand with the {project}.",
        ),
        (
            "{p} finished the first draft of the plan a week early.",
            "{p} showed a prototype that worked in two of three tests.",
            "The budget is at {m} percent of what was foreseen, according to {p}.",
        ),
        (
            "The supplier, on the other hand, has postponed delivery by {n} days.",
            "We still lack a person who can test the software on weekends.",
            "Customers complained about slow answers, most of them with good reason.",
        ),
        (
            "{q} suggested leaving out the least important feature.",
            "{q} will call the supplier and ask for a partial delivery.",
            "{q} thinks that a second server would solve most of the problems.",
        ),
        (
            "There was no agreement about the date of the launch.",
            "We agreed to decide about the colours at the next meeting.",
            "Everyone was asked to write down open questions until {month}.",
        ),
        (
            "The next meeting takes place in room {n}, and there will be cake.",
            "Please send corrections to {p}.",
            "If nothing unexpected happens, we will be done in {n} weeks.",
        ),
    ),
    (
        (
            "It was {p}'s first day as a lighthouse guide, and the fog was so thick that the sea could only be heard.",
            "On the last evening of {month}, {p} found a key in the pocket of a coat that she had bought second-hand.",
            "Every morning {p} fed the old horse at the edge of {place}, though it belonged to nobody.",
        ),
        (
            "Nobody else had noticed anything.",
            "A boy called {q} was watching from a wall.",
            "For {n} days nothing happened.",
        ),
        (
            "Then a letter arrived without a sender.",
            "Then, one night, a light went on in the empty house.",
            "Then it began to snow, and all the roads were closed.",
        ),
        (
            "{p} hesitated, put on a hat and went out.",
            "{p} asked {q} for help, and together they followed the tracks.",
            "{p} laughed at first, but not for long.",
        ),
        (
            "What they found was an old wooden box with {n} photographs inside.",
            "Behind the door stood a man who seemed to have been waiting for them.",
            "At the end of the path there was a garden, green in the middle of winter.",
        ),
        (
            "The pictures showed {place} as it would look in a hundred years.",
            "He asked only for a glass of water and the time.",
            "It took them until dawn to understand what it meant.",
        ),
        (
            "They never told anyone, except for the horse.",
            "The next day everything was as before, but {p} was not.",
            "{q} kept the key, and has it to this day.",
        ),
    ),
    (
        (
            "Before you use your new {device}, remove all of the packaging and check the cable for damage.",
            "Thank you for buying this {device}; please read these pages before switching it on.",
            "The {device} may be used indoors only.",
        ),
        (
            "Place it on a flat, dry surface at least {n} centimetres from the wall.",
            "Charge it for {n} hours before the first use.",
            "Rinse all removable parts with warm water and let them dry.",
        ),
        (
            "Press the large button for {n} seconds until the light turns green.",
            "Turn the dial to the desired level and close the lid.",
            "Download the app and follow the steps on the screen.",
        ),
        (
            "If the light blinks red, the filter has to be cleaned.",
            "A humming noise in the first minutes is normal.",
            "Don't open the lid while the motor is running.",
        ),
        (
            "Children should use the {device} only when an adult is in the room.",
            "Never put it under water.",
            "Use only spare parts that carry the maker's name.",
        ),
        (
            "Clean it once a week with a soft cloth.",
            "After {m} hours of use, a message reminds you of the service.",
            "At the end of its life, bring it to a collection point and don't put it in the bin.",
        ),
        (
            "The warranty covers two years from the date of purchase.",
            "In case of trouble, call our service line on working days.",
            "Spare parts are available for {n} years.",
        ),
    ),
    (
        (
            "In {year}, a fire destroyed half of {place}.",
            "The bridge of {place} was built in {year} by an engineer who was only {n2} years old.",
            "Until {year}, there was no clock in {place}.",
        ),
        (
            "According to the records, {p} was the first to warn the others.",
            "Stone was brought by boat from a quarry {m} kilometres away.",
            "The citizens paid for it with a tax on beer.",
        ),
        (
            "The work lasted {n} years and cost the lives of several people.",
            "Merchants profited, while farmers had to sell land.",
            "A rival town did everything to stop it.",
        ),
        (
            "A drawing from that time shows a crowd, two dogs and a very small king.",
            "Letters tell of dancing in the streets.",
            "Only a short inscription reminds visitors of these events.",
        ),
        (
            "Historians disagree about the reason.",
            "Later generations changed almost every detail.",
            "In the war it was hidden under earth and leaves.",
        ),
        (
            "Today {m} thousand visitors a year come to see it.",
            "A restoration is planned, if the money can be found.",
            "Schoolchildren act out the story every {month}.",
        ),
    ),
    (
        (
            "I bought the {device} {n} weeks ago and have used it nearly every day.",
            "My old {device} broke, so I needed a new one quickly.",
            "I'm not easily impressed, but this {device} is different.",
        ),
        (
            "Setting it up took {n} minutes and no tools.",
            "The instructions are hard to read, and one page is upside down.",
            "It came well packed, with two spare parts that I didn't expect.",
        ),
        (
            "In daily use it's quiet and fast.",
            "It does what it should, though it gets warm after {n} minutes.",
            "The battery lasts about half as long as the box promises.",
        ),
        (
            "My children managed it without help.",
            "My mother, who is {n2}, found the buttons too small.",
            "The app asks for a password each time, which is a nuisance.",
        ),
        (
            "Cleaning is simple, as all parts come off.",
            "After a month a small crack showed up in the handle.",
            "Customer service answered within a day and sent a replacement.",
        ),
        (
            "For {m} euros I'd expect a longer cable.",
            "There are cheaper ones, but they felt flimsy in the shop.",
            "It cost {m} euros, which seems fair to me.",
        ),
        ("All in all I'd buy it again.", "I'm sending it back.", "I give it four stars out of five."),
    ),
    (
        (
            "Children who grow up with {animal} learn early to take responsibility.",
            "More and more people in {place} keep {animal}.",
            "Keeping {animal} in the city used to be forbidden.",
        ),
        (
            "According to {p}, who advises new owners, most underestimate the time it takes.",
            "The costs add up to about {m} euros a year.",
            "They need space, company and somebody who is at home.",
        ),
        (
            "Common mistakes are too much food and too little exercise.",
            "The first {n} weeks are the most difficult.",
            "A vet should see them at least once a year.",
        ),
        (
            "Studies show that owners walk more and complain less.",
            "Neighbours don't always share the enthusiasm.",
            "In {n} out of ten cases the parents end up doing the work.",
        ),
        (
            "Those who travel a lot should think twice.",
            "Shelters are full, above all after the holidays.",
            "Some landlords demand a higher deposit.",
        ),
        (
            "A course for beginners starts in {month}.",
            "Whoever isn't sure can begin by looking after a neighbour's.",
            "Still, hardly anybody regrets the decision.",
        ),
    ),
    (
        (
            "For a long time {place} turned its back on the river.",
            "The flood of {year} changed the valley below {place}.",
            "The river at {place} is shorter than it used to be, by about {n} kilometres.",
        ),
        (
            "Engineers had straightened it so that boats and barges could pass.",
            "Factories used it as a drain, and nobody swam in it for {n2} years.",
            "Old maps show bends and islands where there are car parks today.",
        ),
        (
            "When the last tannery closed, the fish returned faster than anyone had expected.",
            "A dozen towns along its banks then agreed on a common plan.",
            "After a second flood, people began to ask whether the walls did more harm than good.",
        ),
        (
            "{p}, who fishes there every weekend, counted {n} species in one morning.",
            "{p}, who lost a barn to the water, was among the first to rebuild on higher ground.",
            "{p}, an engineer, wants to give back some of the meadows to the river.",
        ),
        (
            "The works cost about {m} million, a third of which comes from the state.",
            "Farmers were offered other fields in exchange, and most of them accepted.",
            "Power companies asked to be paid for the water that no longer drives their turbines.",
        ),
        (
            "Not everyone is happy: rents along the bank have doubled.",
            "In dry summers cattle graze on the new banks.",
            "On hot days people queue for a place on the wooden deck.",
        ),
        (
            "A second stretch will follow in {month}.",
            "The first results are encouraging, but one dry year proves little.",
            "The town has promised to measure the quality of the water every week.",
        ),
    ),
    (
        (
            "At {n2}, {p} decided to learn the cello.",
            "Every Tuesday evening, {n} adults meet in the school of {place} to make music.",
            "Learning an instrument as an adult is harder than it looks and easier than most people fear.",
        ),
        (
            "The first obstacle is usually the neighbours.",
            "The first months sounded terrible, as all of them admit.",
            "Fingers that have typed for decades don't like to stretch.",
        ),
        (
            "A teacher helps, but {n} minutes of practice a day matter more than an hour on Sunday.",
            "{q}, who gives the lessons, lets beginners play simple duets from the first day.",
            "A phone that records each session shows progress that the ear forgets.",
        ),
        (
            "Progress comes in jumps, with long flat stretches in between.",
            "Around the second winter, about {m} percent give up.",
            "Adults are less patient with themselves than children are.",
        ),
        (
            "Those who play with others stay with it longer.",
            "On the other hand, they know why they practise, and nobody sends them.",
            "Doctors say that it keeps memory and hearing in good shape.",
        ),
        (
            "Last {month} the group gave its first concert, with cake for the audience.",
            "A used instrument costs less than a bicycle and can be sold again.",
            "The waiting list has grown to {m} names.",
        ),
        (
            "Nobody has to become famous.",
            "\"It's the only hour of the week in which I can't think of work,\" says {p}.",
            "The next course begins after the holidays.",
        ),
    ),
    (
        (
            "Dear customers, our shop in {place} will be closed for repairs from the beginning of {month}.",
            "Dear members, the yearly meeting of our club took place last Friday in {place}.",
            "Dear parents, a few words about the coming weeks at the school in {place}.",
        ),
        (
            "The reason is a burst pipe that nobody noticed for {n} days.",
            "There were {m} people in the room, more than ever before.",
            "Because of the many cases of flu, some things will be different from usual.",
        ),
        (
            "{p} will answer questions by phone in the mornings.",
            "{p} was elected as treasurer for the next two years.",
            "{p} takes over the late shift until further notice.",
        ),
        (
            "Orders that have already been paid can be picked up at the back door.",
            "The fee stays the same, although the costs have risen by {n} percent.",
            "Please bring a cup of your own and warm clothes.",
        ),
        (
            "We know that this is a nuisance, and we're sorry about it.",
            "A proposal to buy a second tent was rejected by a narrow margin.",
            "The trip to the lake is postponed and not cancelled.",
        ),
        (
            "{q} is still looking for volunteers who can carry tables.",
            "As a small thank you there will be soup for everybody on the last day.",
            "Those who can't come are asked to tell {q} in good time.",
        ),
        (
            "We look forward to seeing you again.",
            "The next date will be announced on the notice board.",
            "With kind regards, and with hope for better weather.",
        ),
    ),
    (
        (
            "Sleep is the first thing that people give up when time is short.",
            "In a survey, {m} out of a hundred people said that they sleep badly.",
            "{p}, a doctor in {place}, asks all her patients about their nights.",
        ),
        (
            "Less than six hours over several weeks slows reactions as much as two glasses of wine.",
            "Screens are blamed most often, but late meals and warm rooms do as much harm.",
            "Many lie in bed for too long, which makes the problem worse.",
        ),
        (
            "The body needs a fixed hour for getting up more than one for going to bed.",
            "A walk in the morning light sets the inner clock.",
            "Coffee drunk at four is still half there at ten.",
        ),
        (
            "Pills help for a few nights and then lose their effect.",
            "A short nap does no harm if it ends before three o'clock.",
            "In a trial with {m} volunteers, a simple diary improved sleep within {n} weeks.",
        ),
        (
            "Those who lie awake should get up and do something dull.",
            "Thinking about sleep is the surest way to prevent it.",
            "Old people wake more often, which is no illness.",
        ),
        (
            "Employers could help by not sending messages at night.",
            "Schools that begin later report fewer accidents on the way.",
            "Hotels have discovered the subject and offer {n} kinds of pillows.",
        ),
        (
            "If nothing helps for {n} weeks, a doctor should be asked.",
            "In the end, the best remedy costs nothing.",
            "Nobody has to be perfect at it, not even at sleeping.",
        ),
    ),
)
_PLACES = (
    "Altmere",
    "Brackwater",
    "Corvale",
    "Dunholt",
    "Eastwick",
    "Fernby",
    "Grayport",
    "Hollin",
    "Ivybridge",
    "Jarrow Hill",
    "Kelso",
    "Larkfield",
    "Millbrook",
    "Northam",
    "Oakhurst",
    "Pinewood",
    "Quarry Bay",
    "Redcliff",
    "Stonebeck",
    "Thornton",
)
_ANIMALS = (
    "pigeons",
    "hedgehogs",
    "geese",
    "rabbits",
    "bees",
    "goats",
    "parrots",
    "ducks",
    "foxes",
    "tortoises",
    "swallows",
    "bats",
)
_FOODS = (
    "rye bread",
    "goat cheese",
    "buckwheat",
    "cabbage",
    "dried fruit",
    "chickpeas",
    "honey",
    "smoked fish",
    "beetroot",
    "chestnuts",
)
_DEVICES = (
    "kettle",
    "vacuum cleaner",
    "air purifier",
    "blender",
    "hair dryer",
    "electric drill",
    "coffee machine",
    "rice cooker",
    "robot mower",
    "toaster",
    "fitness watch",
    "projector",
    "sewing machine",
    "label printer",
)
_PROJECTS = (
    "warehouse",
    "website",
    "garden",
    "newsletter",
    "archive",
    "summer festival",
    "payroll",
    "library",
    "recycling",
    "booking",
)
_MONTHS = ("January", "February", "March", "April", "May", "June", "September", "October", "November", "December")
_SUMMARY_FORMS = (
    "Summarise the following text in {k} sentences.",
    "Summarize this passage.",
    "Give a one-sentence summary of this text.",
    "List the main points of the passage.",
    "Write a headline for this text.",
    "What is this text about?",
    "TL;DR:",
    "Summarise this text for a child.",
    "Extract all names, numbers and places from the text.",
    "Rewrite this text in simpler words.",
    "Rewrite this passage in a more formal style.",
    "Shorten this text to about {w} words.",
    "What are the {k} most important statements?",
    "Write {k} questions that can be answered from this text, with the answers.",
    "Give me the key points as bullet points.",
    "Sum up the text below in your own words.",
    "Rephrase the text as if you told it to a friend.",
    "Suggest a title and give a short summary.",
    "Turn this text into a list of facts.",
    "Translate the main message of this text into one tweet.",
    "Who does what in this text? Answer briefly.",
    "What does the text say, and what does it leave open?",
    "Summarise the passage below and name its tone.",
    "Is the author in favour or against? Give reasons from the text.",
    "Please make a summary of at most {w} words.",
    "Correct the style of this text where needed, and then summarise it.",
    "Continue this text with {k} more sentences.",
)


class _Fields(dict[str, object]):
    """Draws a field's value when a template asks for it, numbers anew each time they're asked for."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        person, friend = (_PEOPLE[int(i)] for i in rng.permutation(len(_PEOPLE))[:2])
        food = pick(rng, _FOODS)
        super().__init__(
            p=person,
            q=friend,
            place=pick(rng, _PLACES),
            animal=pick(rng, _ANIMALS),
            food=food,
            Food=food.capitalize(),
            device=pick(rng, _DEVICES),
            project=pick(rng, _PROJECTS),
        )

    def __missing__(self, key: str) -> object:
        if key == "month":
            return pick(self.rng, _MONTHS)
        low, high = {"n": (3, 15), "n2": (31, 84), "m": (16, 99), "year": (1610, 1955), "k": (2, 6), "w": (20, 60)}[key]
        return int(self.rng.integers(low, high))


def passage(rng: np.random.Generator) -> str:
    """A passage of 60 to 160 words, one sentence from each slot of a setting (short ones get a second helping)."""
    fields = _Fields(rng)
    formatter = string.Formatter()
    slots = pick(rng, _PASSAGES)
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
    task = string.Formatter().vformat(pick(rng, _SUMMARY_FORMS), (), _Fields(rng))
    text = passage(rng)
    layout = rng.random()
    if layout < 0.7:
        return f"{task}\n\n{text}"
    if layout < 0.85:
        return f"{text}\n\n{task}"
    return f'{task}\n\nText: "{text}"'


# --- lists, stories, poems, role-play and others ---------------------------------------------------------------------

_HEROES = (
    "a shy dragon",
    "a clockmaker",
    "two sisters",
    "a lost dog",
    "an old sailor",
    "a robot gardener",
    "a young queen",
    "a postman",
    "a talking tree",
    "a retired astronaut",
    "a boy with a kite",
    "a librarian",
    "a fox and a crow",
    "a baker",
    "a ghost who is afraid of the dark",
    "a taxi driver",
    "a violinist",
    "a girl who can hear colours",
    "a knight without a horse",
    "a detective who can't remember faces",
    "twins who swap places",
    "a snail in a hurry",
    "a night watchman",
    "a weather witch",
)
_SCENES = (
    "in a small harbour town",
    "on a train at night",
    "in a school library",
    "on a space station",
    "in a snowed-in hotel",
    "at a market in the desert",
    "in an abandoned theatre",
    "on the first day of summer",
    "in a lighthouse",
    "under the city",
    "during a power cut",
    "in a village where nobody sleeps",
    "on a mountain pass",
    "in a museum after closing time",
    "on an island without maps",
    "in a garden behind a wall",
    "at the end of the world",
    "in a busy kitchen",
)
_STORY_FORMS = (
    "Write a short story about {h} {s}.",
    "Write a poem about {h} {s}.",
    "Tell me a bedtime story about {h} {s}.",
    "Write the first paragraph of a novel about {h} {s}.",
    "Write a funny dialogue between {h} and a stranger {s}.",
    "Continue the story: Once there was {h} {s}, and nobody knew why.",
    "Write a mystery in 150 words about {h} {s}.",
    "Give me three plot ideas about {h} {s}.",
    "Write a haiku about {h} {s}.",
    "Describe {h} {s} in rich detail.",
)
_LISTS = (
    "animals that live in cold places",
    "words that describe the sea",
    "ideas for a rainy afternoon",
    "healthy snacks",
    "countries in South America",
    "names for a bakery",
    "kinds of clouds",
    "things to do before a move",
    "musical instruments",
    "questions for a first date",
    "jobs that involve travel",
    "green vegetables",
    "synonyms for happy",
    "famous inventions",
    "gifts for a grandfather",
    "rules for a shared kitchen",
    "ways to save electricity",
    "trees that grow in Europe",
    "words that rhyme with light",
    "board games for two",
    "topics for a podcast",
    "exercises for the back",
    "names for a grey cat",
    "things that are round",
    "adjectives for food",
    "classic novels",
    "habits of good students",
    "items for a camping trip",
    "metals",
    "capital cities in Asia",
    "team-building activities",
    "ways to say thank you",
    "birds",
    "spices",
    "languages",
    "idioms about time",
    "objects in a classroom",
    "reasons to learn a language",
    "phrases for a birthday card",
    "safety rules for a lab",
)
_LIST_FORMS = (
    "List {n} {l}.",
    "Give me {n} {l}, with one sentence about each.",
    "Make a numbered list of {n} {l}.",
    "Can you name {n} {l}?",
    "Write a table with {n} {l} and a short comment on each.",
    "Return a JSON array with {n} {l}.",
    "What are {n} {l}? Sort them alphabetically.",
    "Brainstorm {n} {l}.",
)
_ROLES = (
    "a patient teacher of physics",
    "a travel guide",
    "a job interviewer",
    "a fitness coach",
    "a pirate",
    "a medieval cook",
    "a museum guide",
    "a chess trainer",
    "a friendly doctor",
    "a tree",
    "a time traveller from the year 2300",
    "a sports reporter",
    "a language tutor",
    "a strict editor",
    "a wise grandmother",
    "a detective",
    "a news presenter",
    "an alien on a visit to Earth",
    "a career adviser",
    "a radio host",
    "a librarian",
    "a shop assistant",
    "a philosopher",
    "a gardener",
)
_ROLE_FORMS = (
    "You are {r}. Introduce yourself and ask me a question.",
    "Act as {r} and explain why {t} matters.",
    'Pretend to be {r}. I say: "I don\'t know anything about {t}." What do you answer?',
    "Write a monologue of {r} about {t}.",
    "Imagine {r} has to sell {t} to a sceptical crowd. Write the speech.",
    "As {r}, give me three pieces of advice on {t}.",
)
_ROLE_TOPICS = (
    "patience",
    "good shoes",
    "the weather",
    "old maps",
    "teamwork",
    "sleep",
    "curiosity",
    "vegetables",
    "money",
    "music",
    "silence",
    "friendship",
    "mistakes",
    "bicycles",
    "learning",
    "courage",
    "rain",
    "tea",
    "stars",
    "honesty",
)
_LANGUAGES = ("French", "Spanish", "German", "Italian", "Portuguese", "Dutch")
_PHRASES = (
    "Where is the nearest pharmacy?",
    "I would like a table for two.",
    "The train is late again.",
    "Thank you for your patience.",
    "My brother lives in a small village.",
    "Can you help me carry this box?",
    "We have run out of milk.",
    "See you on Monday!",
    "The children are playing in the garden.",
    "How much does this cost?",
    "I have lost my umbrella.",
    "It was a pleasure to meet you.",
    "Please close the window.",
    "She has been learning to swim since May.",
    "What time does the museum open?",
    "I don't eat meat.",
    "The soup is too hot.",
    "They bought an old house near the river.",
    "Could you repeat that, please?",
)
_REWRITES = (
    "Hey, cant come tomorow, car broke down, sorry!!",
    "me and him was going to the store when it start raining",
    "We regret to inform you that the aforementioned item is currently not in our possession.",
    "The meeting was held by us in order to make a decision about the plan.",
    "your late again and i am angry",
    "Their are to many people in this room, its very loud.",
    "I think that maybe we could possibly try another way.",
    "The results, which were obtained by the team, were good, which was nice.",
    "send me the files asap",
    "He dont know nothing about it.",
    "Due to the fact that it rained, the game was not played.",
    "gonna be there in 5, wait 4 me",
)
_REWRITE_FORMS = (
    "Correct the grammar: {t}",
    "Rewrite this more politely: {t}",
    "Make this sentence shorter: {t}",
    "Rewrite this in a formal tone: {t}",
    "Explain the mistakes in this sentence: {t}",
    "Give me three alternatives to: {t}",
    "Turn this into a cheerful message: {t}",
    "Is this positive, negative or neutral? {t}",
)
_PRODUCTS = (
    "bamboo toothbrush",
    "folding bicycle",
    "noise meter",
    "solar lantern",
    "herb garden kit",
    "reusable bottle",
    "desk lamp",
    "hiking backpack",
    "wooden puzzle",
    "travel pillow",
    "cast iron pan",
    "rain jacket",
    "smart notebook",
    "bird feeder",
)
_PRODUCT_FORMS = (
    "Write a product description for a {x}.",
    "Write an advertisement slogan for a {x}.",
    "Invent a brand name for a {x} and explain it.",
    "Write a tweet that announces a new {x}.",
    "Write a five-star review of a {x}.",
    "Write a complaint about a {x} that broke.",
    "Write frequently asked questions with answers for a {x}.",
)


def other(rng: np.random.Generator) -> str:
    """Stories, lists, role-play, translations, corrections and short texts."""
    kind = rng.random()
    if kind < 0.34:
        return pick(rng, _STORY_FORMS).format(h=pick(rng, _HEROES), s=pick(rng, _SCENES))
    if kind < 0.60:
        return pick(rng, _LIST_FORMS).format(n=int(rng.integers(3, 13)), l=pick(rng, _LISTS))
    if kind < 0.80:
        return pick(rng, _ROLE_FORMS).format(r=pick(rng, _ROLES), t=pick(rng, _ROLE_TOPICS))
    if kind < 0.88:
        form = pick(
            rng,
            (
                'Translate into {l}: "{p}"',
                'How do you say "{p}" in {l}?',
                'Translate "{p}" into {l} and explain each word.',
            ),
        )
        return form.format(l=pick(rng, _LANGUAGES), p=pick(rng, _PHRASES))
    if kind < 0.94:
        return pick(rng, _REWRITE_FORMS).format(t=pick(rng, _REWRITES))
    return pick(rng, _PRODUCT_FORMS).format(x=pick(rng, _PRODUCTS))

"""Short chats to train the built-in model on: ``chat(rng)`` gives one as a list of messages.

Arithmetic on small numbers, a table of facts, greetings, what Python words mean, requests for the functions of
``functions.py``, and some questions that the model should say it cannot answer.
"""

from __future__ import annotations

import numpy as np

from assay.goldens.training.functions import ALL_TASKS, plainest, write

Turn = tuple[str, str]  # question, answer

CAPITALS = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, England London, Ireland Dublin,
Norway Oslo, Sweden Stockholm, Denmark Copenhagen, Finland Helsinki, Poland Warsaw, Austria Vienna, Greece Athens,
Hungary Budapest, Russia Moscow, Japan Tokyo, China Beijing, India Delhi, Egypt Cairo, Kenya Nairobi, Canada Ottawa,
Cuba Havana, Peru Lima, Chile Santiago, Turkey Ankara, Iran Tehran, Iraq Baghdad, Belgium Brussels, Ukraine Kyiv"""
COLOURS = """the sky blue, grass green, the sun yellow, snow white, coal black, blood red, a banana yellow,
a strawberry red, an orange orange, a frog green, milk white, the sea blue, a lemon yellow, a tomato red,
chocolate brown, an elephant grey, a cloud white, a leaf green, the night black, gold yellow"""
OPPOSITES = """hot cold, big small, up down, left right, day night, black white, open closed, fast slow, old young,
good bad, happy sad, high low, long short, hard soft, wet dry, full empty, early late, light dark, true false,
in out, yes no, rich poor, strong weak, near far"""
SOUNDS = "dog barks, cat meows, cow moos, duck quacks, lion roars, horse neighs, sheep bleats, bee buzzes, bird sings"
LEGS = "dog 4, cat 4, horse 4, spider 8, bird 2, ant 6, human 2, fish 0, cow 4, bee 6, snake 0"
PLURALS = """cat cats, dog dogs, mouse mice, child children, man men, woman women, foot feet, box boxes, house houses,
tooth teeth, book books, city cities, leaf leaves"""
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December"]  # fmt: skip
NUMBERS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight"]
FACTS = """
How many days are in a week? | There are seven days in a week.
How many months are in a year? | There are twelve months in a year.
How many hours are in a day? | There are 24 hours in a day.
How many minutes are in an hour? | There are 60 minutes in an hour.
How many seconds are in a minute? | There are 60 seconds in a minute.
How many days are in a year? | There are 365 days in a year, and 366 in a leap year.
How many letters are in the alphabet? | There are 26 letters in the English alphabet.
What is water? | Water is a clear liquid that we drink. Ice is frozen water.
What is the sun? | The sun is the star at the centre of the solar system.
What is the moon? | The moon goes around the Earth.
What is the largest planet? | Jupiter is the largest planet.
What planet do we live on? | We live on the planet Earth.
What is a prime number? | A prime number is a whole number above 1 that only 1 and itself divide.
What is the first prime number? | The first prime number is 2.
What is pi? | Pi is about 3.14159. It is the circumference of a circle divided by its diameter.
What is a triangle? | A triangle is a shape with three sides.
What is a square? | A square is a shape with four equal sides and four right angles.
What is Python? | Python is a programming language. It is easy to read and widely used.
What is a variable? | A variable is a name for a value. For example, x = 1 gives the name x to the value 1.
What is a function? | A function is a named piece of code that takes arguments and returns a result.
What is a list? | A list is an ordered collection of items, such as [1, 2, 3].
What is a dictionary? | A dictionary maps keys to values, such as {"a": 1, "b": 2}.
What is a tuple? | A tuple is an ordered collection that cannot change, such as (1, 2).
What is a set? | A set is a collection without duplicates, such as {1, 2, 3}.
What is a string? | A string is a piece of text, such as "hello".
What is a loop? | A loop runs a piece of code again and again, such as for i in range(10).
What is a class? | A class describes objects: the data they hold and the methods they have.
What is recursion? | Recursion is when a function calls itself on a smaller problem.
What is a bug? | A bug is a mistake in a program.
What is an algorithm? | An algorithm is a list of steps that solves a problem.
What is a computer? | A computer is a machine that runs programs.
What is a language model? | A language model predicts the next token of a text. I am a very small one.
What is a token? | A token is a piece of text: a word, a part of a word or a sign.
What is Assay? | Assay checks whether a fast engine computes what a model file says.
What is JAX? | JAX is a library for fast numerical programs in Python.
What is NumPy? | NumPy is a Python library for arrays of numbers.
How do I print something in Python? | Use the print function: print("Hello")
How do I write a comment in Python? | Start it with a hash sign: # this is a comment
How do I sort a list in Python? | Use sorted(values), or values.sort() to sort it in place.
How do I reverse a list in Python? | Use values[::-1], or values.reverse() to reverse it in place.
How do I read a file in Python? | Use open: with open(path) as file: text = file.read()
How do I get the length of a list? | Use the len function: len(values)
How do I import a module? | Use the import statement: import math
How do I write a loop in Python? | Use for: for i in range(10): print(i)
How do I add an item to a list? | Use append: values.append(item)
How do I make a list? | Write the items in square brackets: values = [1, 2, 3]
Tell me a joke. | Why do programmers like the dark? Because light attracts bugs.
Do you know a joke? | Why do programmers like the dark? Because light attracts bugs.
Who are you? | I am a very small language model that Assay trained.
What are you? | I am a very small language model that Assay trained.
What is your name? | I have no name. I am a very small language model that Assay trained.
Who made you? | I was trained by a script of Assay on two processor cores.
Who trained you? | I was trained by a script of Assay on two processor cores.
Are you a human? | No, I am a very small language model.
Are you ChatGPT? | No, I am a very small language model that Assay trained.
How big are you? | I have a few million parameters. That is very small.
How old are you? | I have no age. I am a program.
What can you do? | I can write short Python functions and do small sums.
Can you help me? | Yes. I can write short Python functions and do small sums.
Can you write Python? | Yes, I can write short Python functions. What should it do?
Hello! | Hello! How can I help you?
Hello | Hello! How can I help you?
Hi | Hello! How can I help you?
Hi! | Hello! How can I help you?
Hey there | Hello! How can I help you?
Good morning | Good morning! How can I help you?
Good evening | Good evening! How can I help you?
How are you? | I am well, thank you. How can I help you?
How are you today? | I am well, thank you. How can I help you?
Thank you | You are welcome!
Thanks! | You are welcome!
Thank you very much! | You are welcome!
Goodbye | Goodbye!
Bye! | Goodbye!
Say hello. | Hello!
Say hello in French. | Bonjour!
Say hello in German. | Hallo!
Say hello in Spanish. | Hola!
"""
UNKNOWN = """Who won the world cup?; What is the weather today?; What is the news?; Who is the president?;
What is the meaning of life?; What time is it?; What is the price of gold?; Tell me about history.;
Explain quantum mechanics.; Who wrote Hamlet?; What is love?; Tell me a story.; Write a poem.; What happened in 1969?;
Which stock should I buy?; Who is the best player?; What is the population of the world?; How does a car work?;
Who discovered America?; What is the speed of light?; Translate this sentence.; What is your favourite film?"""
ONE_KIND = [tuple(line.split(" | ")) for line in FACTS.strip().splitlines()]


def table(text: str) -> list[Turn]:
    """"the sky blue, grass green" to pairs: the last word of each entry is the answer."""
    return [(left, right) for left, right in (entry.strip().rsplit(" ", 1) for entry in text.split(","))]


def one_of(rng: np.random.Generator, items: list[Turn]) -> Turn:
    """Any entry of a table."""
    return items[rng.integers(len(items))]


def arithmetic(rng: np.random.Generator) -> Turn:
    """A small sum, difference or product, asked in one of many ways."""
    kind = rng.choice(["+", "-", "*"], p=[0.7, 0.2, 0.1])
    top = rng.choice([6, 11, 21], p=[0.6, 0.35, 0.05])  # small numbers mostly, as elsewhere: few facts, seen often
    a, b = sorted(int(x) for x in rng.integers(0, top, 2))[:: rng.choice([-1, 1]) if kind != "-" else -1]
    word = {"+": "plus", "-": "minus", "*": "times"}[kind]
    result = {"+": a + b, "-": a - b, "*": a * b}[kind]
    questions = [f"What is {a}{kind}{b}?", f"What is {a} {kind} {b}?", f"What is {a} {word} {b}?", f"{a}{kind}{b}",
                 f"{a} {kind} {b}", f"{a} {kind} {b} =", f"How much is {a} {word} {b}?", f"Compute {a} {kind} {b}.",
                 f"What's {a}{kind}{b}?", f"Calculate {a}{kind}{b}", f"what is {a}{kind}{b}"]  # fmt: skip
    return plainest(rng, questions), f"{a} {kind} {b} equals {result}."


def comparison(rng: np.random.Generator) -> Turn:
    """Which of two numbers is larger, or whether one is even."""
    a, b = (int(x) for x in rng.choice(30, 2, replace=False))
    if rng.random() < 0.5:
        word = plainest(rng, ["larger", "bigger", "smaller"])
        best = min(a, b) if word == "smaller" else max(a, b)
        return f"Which is {word}, {a} or {b}?", f"{best} is {word} than {a + b - best}."
    word = plainest(rng, ["even", "odd"])
    answer = "Yes" if (a % 2 == 0) == (word == "even") else "No"
    return f"Is {a} {word}?", f"{answer}, {a} is {'odd' if a % 2 else 'even'}."


def knowledge(rng: np.random.Generator) -> Turn:
    """A capital, colour, opposite, sound, number of legs or plural."""
    which = rng.integers(8)
    if which < 2:
        country, city = one_of(rng, table(CAPITALS))
        asked = plainest(rng, ["What is the capital of {}?", "What's the capital of {}?", "Name the capital of {}."])
        return asked.format(country), f"The capital of {country} is {city}."
    if which < 4:
        thing, colour = one_of(rng, table(COLOURS))
        return plainest(rng, [f"What colour is {thing}?", f"What color is {thing}?",
                              f"Which colour is {thing}?"]), f"{thing[0].upper()}{thing[1:]} is {colour}."  # fmt: skip
    if which == 4:
        word, other = one_of(rng, table(OPPOSITES))[:: rng.choice([-1, 1])]
        return plainest(rng, [f"What is the opposite of {word}?", f"What's the opposite of {word}?"]), (
            f"The opposite of {word} is {other}.")  # fmt: skip
    if which == 5:
        animal, sound = one_of(rng, table(SOUNDS))
        return f"What sound does a {animal} make?", f"A {animal} {sound}."
    if which == 6:
        animal, legs = one_of(rng, table(LEGS))
        return f"How many legs does a{'n' if animal == 'ant' else ''} {animal} have?", (
            f"A{'n' if animal == 'ant' else ''} {animal} has {NUMBERS[int(legs)]} legs.")
    word, plural = one_of(rng, table(PLURALS))
    return f"What is the plural of {word}?", f"The plural of {word} is {plural}."


def order(rng: np.random.Generator) -> Turn:
    """Days, months and counting."""
    which = rng.integers(4)
    if which < 2:
        names = DAYS if which else MONTHS
        i = int(rng.integers(len(names)))
        step, word = (1, "after") if rng.random() < 0.6 else (-1, "before")
        asked = f"What {'day' if which else 'month'} comes {word} {names[i]}?"
        return asked, f"{names[(i + step) % len(names)]} comes {word} {names[i]}."
    if which == 2:
        top = int(rng.integers(3, 13))
        return f"Count {plainest(rng, ['from 1 ', ''])}to {top}.", ", ".join(map(str, range(1, top + 1))) + "."
    names, word = (DAYS, "days of the week") if rng.random() < 0.5 else (MONTHS, "months of the year")
    return f"Name the {word}.", f"The {word} are {', '.join(names[:-1])} and {names[-1]}."


def programming(rng: np.random.Generator) -> Turn:
    """A request for one of the functions, answered with a fenced block."""
    task = ALL_TASKS[rng.integers(len(ALL_TASKS))]
    asked = plainest(rng, ["Write a function that {}.", "Write a Python function that {}.", "Write a function that {}",
                           "Please write a function that {}.", "I need a function that {}.",
                           "Can you write a function that {}?", "Show me a Python function that {}."])  # fmt: skip
    name = ""
    if rng.random() < 0.15:
        name = plainest(rng, task.names)
        asked = plainest(rng, [f"Write a function called {name}.", f"Write {name} in Python."])
    answer = f"Here is a function that {task.what}:\n\n```python\n{write(rng, task, True, name)}\n```"
    return asked.format(task.what), answer


def unknown(rng: np.random.Generator) -> Turn:
    """What such a model cannot know."""
    questions = [question.strip() for question in UNKNOWN.split(";")]
    return questions[rng.integers(len(questions))], "I do not know that. I am a very small model."


def fact(rng: np.random.Generator) -> Turn:
    """A line of ``FACTS``, now and then in lower case or without its sign."""
    question, answer = ONE_KIND[rng.integers(len(ONE_KIND))]
    return plainest(rng, [question, question, question.lower(), question.rstrip("?!.")]), answer


KINDS = [(arithmetic, 0.40), (programming, 0.20), (fact, 0.18), (knowledge, 0.11), (order, 0.03), (comparison, 0.05),
         (unknown, 0.03)]  # fmt: skip
SYSTEMS = ["You are a helpful assistant.", "You are a small model.", "Answer briefly.", "You are a Python programmer."]


def chat(rng: np.random.Generator) -> list[dict[str, str]]:
    """One to three questions and answers; one chat in six has a system message of its own."""
    system = rng.random() < 1 / 6
    messages = [{"role": "system", "content": SYSTEMS[rng.integers(len(SYSTEMS))]}] if system else []
    kinds, weights = zip(*KINDS, strict=True)
    for _ in range(int(rng.choice([1, 2, 3], p=[0.55, 0.28, 0.17]))):
        question, answer = kinds[rng.choice(len(kinds), p=weights)](rng)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages

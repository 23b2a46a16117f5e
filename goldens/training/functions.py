"""Small Python functions to train the built-in model on, written from templates: ``function(rng)`` gives one.

A task is a block of ``TASKS``: what the function does, its names, its parameters, its bodies. ``$f`` stands for the
function's name and the other ``$`` words for variables, each drawn from its pool, so that the model must learn to copy
names and not only to recite. The first name, body and variable of each list are drawn most often: greedy decoding
should end on the plainest version.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np

POOLS = {
    "n": ["n", "number", "num", "k", "count", "limit"],
    "a": ["a", "x", "first", "left", "p"],
    "b": ["b", "y", "second", "right", "q"],
    "c": ["c", "z", "third"],
    "s": ["text", "s", "string", "word", "line", "sentence"],
    "xs": ["values", "numbers", "items", "xs", "data", "elements"],
    "ys": ["others", "ys", "more", "weights"],
    "d": ["mapping", "d", "table", "counts"],
    "x": ["value", "item", "x", "element", "entry"],
    "t": ["target", "wanted", "key"],
    "i": ["i", "index", "j", "step"],
    "r": ["result", "total", "out", "answer"],
    "m": ["best", "current", "found"],
    "path": ["path", "filename", "name"],
    "ch": ["char", "letter", "ch"],
    "w": ["w", "part", "token"],
}
HINTS = {"n": "int", "a": "int", "b": "int", "c": "int", "s": "str", "xs": "list[int]", "ys": "list[int]",
         "d": "dict", "x": "int", "t": "int", "path": "str", "ch": "str"}  # fmt: skip

# "= what it does | names | parameters | kind of result", then bodies parted by a line "--"
TASKS = '''
= returns the n-th Fibonacci number | fib fibonacci nth_fibonacci fib_number | n | int
if $n <= 1:
    return $n
return $f($n - 1) + $f($n - 2)
--
$a, $b = 0, 1
for _ in range($n):
    $a, $b = $b, $a + $b
return $a
= returns the first n Fibonacci numbers | fibs fib_list fibonacci_sequence first_fibs | n | list[int]
$r = []
$a, $b = 0, 1
for _ in range($n):
    $r.append($a)
    $a, $b = $b, $a + $b
return $r
= returns the factorial of a number | factorial fact compute_factorial | n | int
if $n <= 1:
    return 1
return $n * $f($n - 1)
--
$r = 1
for $i in range(2, $n + 1):
    $r *= $i
return $r
= returns the greatest common divisor of two numbers | gcd greatest_common_divisor common_divisor | a b | int
while $b:
    $a, $b = $b, $a % $b
return $a
--
if $b == 0:
    return $a
return $f($b, $a % $b)
= returns the least common multiple of two numbers | lcm least_common_multiple | a b | int
return $a * $b // gcd($a, $b)
= checks whether a number is prime | is_prime prime check_prime | n | bool
if $n < 2:
    return False
for $i in range(2, int($n ** 0.5) + 1):
    if $n % $i == 0:
        return False
return True
--
if $n < 2:
    return False
return all($n % $i for $i in range(2, $n))
= returns all primes below a limit | primes primes_below list_primes | n | list[int]
return [$i for $i in range(2, $n) if is_prime($i)]
--
$r = []
for $i in range(2, $n):
    if is_prime($i):
        $r.append($i)
return $r
= reverses a string | reverse reverse_string reversed_text flip | s | str
return $s[::-1]
--
$r = ""
for $ch in $s:
    $r = $ch + $r
return $r
= checks whether a string is a palindrome | is_palindrome palindrome check_palindrome | s | bool
return $s == $s[::-1]
--
$s = $s.lower()
return $s == $s[::-1]
= returns the sum of a list | sum_list total add_all sum_of list_sum | xs | int
return sum($xs)
--
$r = 0
for $x in $xs:
    $r += $x
return $r
= returns the product of a list | product multiply_all prod | xs | int
$r = 1
for $x in $xs:
    $r *= $x
return $r
= returns the largest number in a list | largest maximum max_value find_max biggest | xs | int
$m = $xs[0]
for $x in $xs:
    if $x > $m:
        $m = $x
return $m
--
return max($xs)
= returns the smallest number in a list | smallest minimum min_value find_min least | xs | int
$m = $xs[0]
for $x in $xs:
    if $x < $m:
        $m = $x
return $m
--
return min($xs)
= returns the average of a list | average mean avg compute_mean | xs | float
return sum($xs) / len($xs)
--
if not $xs:
    return 0
return sum($xs) / len($xs)
= returns the median of a list | median find_median middle | xs | float
$xs = sorted($xs)
$n = len($xs)
if $n % 2:
    return $xs[$n // 2]
return ($xs[$n // 2 - 1] + $xs[$n // 2]) / 2
= counts the vowels in a string | count_vowels vowels n_vowels | s | int
return sum(1 for $ch in $s if $ch in "aeiou")
--
$r = 0
for $ch in $s:
    if $ch in "aeiou":
        $r += 1
return $r
= counts the words in a string | count_words n_words word_total | s | int
return len($s.split())
= counts how often each word occurs | word_count word_counts count_each_word | s | dict
$d = {}
for $w in $s.split():
    $d[$w] = $d.get($w, 0) + 1
return $d
= counts how often each item occurs | count_items counts frequencies histogram | xs | dict
$d = {}
for $x in $xs:
    $d[$x] = $d.get($x, 0) + 1
return $d
= checks whether a number is even | is_even even check_even | n | bool
return $n % 2 == 0
= checks whether a number is odd | is_odd odd check_odd | n | bool
return $n % 2 == 1
= returns the square of a number | square squared | x | int
return $x * $x
--
return $x ** 2
= returns the cube of a number | cube cubed | x | int
return $x ** 3
--
return $x * $x * $x
= doubles a number | double twice times_two | x | int
return 2 * $x
= adds two numbers | add plus add_numbers sum_two | a b | int
return $a + $b
= subtracts two numbers | subtract minus difference sub | a b | int
return $a - $b
= multiplies two numbers | multiply times mul | a b | int
return $a * $b
= divides two numbers | divide div quotient | a b | float
if $b == 0:
    raise ValueError("cannot divide by zero")
return $a / $b
--
return $a / $b
= raises a number to a power | power pow_int raise_to | x n | int
$r = 1
for _ in range($n):
    $r *= $x
return $r
--
if $n == 0:
    return 1
return $x * $f($x, $n - 1)
= returns the absolute value of a number | absolute abs_value my_abs | x | int
if $x < 0:
    return -$x
return $x
= returns the sign of a number | sign signum | x | int
if $x > 0:
    return 1
if $x < 0:
    return -1
return 0
= returns the larger of two numbers | max_of_two larger max2 | a b | int
if $a > $b:
    return $a
return $b
= returns the smaller of two numbers | min_of_two smaller min2 | a b | int
if $a < $b:
    return $a
return $b
= returns the largest of three numbers | max_of_three largest_of_three max3 | a b c | int
return max($a, $b, $c)
= limits a number to a range | clamp clip limit_to | x a b | int
return max($a, min($x, $b))
--
if $x < $a:
    return $a
if $x > $b:
    return $b
return $x
= swaps two values | swap exchange | a b | tuple
return $b, $a
= converts Celsius to Fahrenheit | celsius_to_fahrenheit to_fahrenheit c_to_f | x | float
return $x * 9 / 5 + 32
= converts Fahrenheit to Celsius | fahrenheit_to_celsius to_celsius f_to_c | x | float
return ($x - 32) * 5 / 9
= returns the area of a circle | circle_area area_of_circle | x | float
return 3.14159 * $x ** 2
= returns the area of a rectangle | rectangle_area area area_of_rectangle | a b | int
return $a * $b
= returns the perimeter of a rectangle | perimeter rectangle_perimeter | a b | int
return 2 * ($a + $b)
= returns the length of the longest side of a right triangle | hypotenuse hypot pythagoras | a b | float
return ($a ** 2 + $b ** 2) ** 0.5
= returns the sum of the digits of a number | sum_digits digit_sum sum_of_digits | n | int
return sum(int($ch) for $ch in str($n))
--
$r = 0
while $n > 0:
    $r += $n % 10
    $n //= 10
return $r
= counts the digits of a number | count_digits n_digits | n | int
return len(str($n))
= returns the divisors of a number | divisors factors find_divisors | n | list[int]
return [$i for $i in range(1, $n + 1) if $n % $i == 0]
= returns the sum of the numbers from 1 to n | sum_to_n triangle sum_to sum_up_to | n | int
return $n * ($n + 1) // 2
--
return sum(range($n + 1))
= returns the numbers from 1 to n | count_up numbers_to one_to | n | list[int]
return list(range(1, $n + 1))
= counts down to zero | countdown count_down | n | None
while $n > 0:
    print($n)
    $n -= 1
print("Done!")
= prints fizz, buzz or the number | fizzbuzz fizz_buzz | n | None
for $i in range(1, $n + 1):
    if $i % 15 == 0:
        print("FizzBuzz")
    elif $i % 3 == 0:
        print("Fizz")
    elif $i % 5 == 0:
        print("Buzz")
    else:
        print($i)
= checks whether a year is a leap year | is_leap_year leap_year is_leap | n | bool
return $n % 4 == 0 and ($n % 100 != 0 or $n % 400 == 0)
= removes duplicates from a list | unique remove_duplicates distinct dedupe | xs | list
$r = []
for $x in $xs:
    if $x not in $r:
        $r.append($x)
return $r
--
return list(set($xs))
= flattens a list of lists | flatten flatten_list flat | xs | list
$r = []
for $x in $xs:
    $r.extend($x)
return $r
= returns the even numbers of a list | evens even_numbers filter_even only_even | xs | list[int]
return [$x for $x in $xs if $x % 2 == 0]
= returns the odd numbers of a list | odds odd_numbers filter_odd only_odd | xs | list[int]
return [$x for $x in $xs if $x % 2 == 1]
= returns the positive numbers of a list | positives only_positive filter_positive | xs | list[int]
return [$x for $x in $xs if $x > 0]
= returns the squares of a list | squares square_all square_list | xs | list[int]
return [$x ** 2 for $x in $xs]
= doubles every number of a list | double_all double_list doubled | xs | list[int]
return [2 * $x for $x in $xs]
= reverses a list | reverse_list reversed_list backwards | xs | list
return $xs[::-1]
= returns the first item of a list | first head first_item | xs | int
return $xs[0]
= returns the last item of a list | last last_item tail_item | xs | int
return $xs[-1]
= returns the length of a list | length size count_all | xs | int
return len($xs)
= checks whether a list is empty | is_empty empty check_empty | xs | bool
return len($xs) == 0
= checks whether a list contains a value | contains has_item includes | xs t | bool
for $x in $xs:
    if $x == $t:
        return True
return False
--
return $t in $xs
= finds the position of a value in a list | find linear_search index_of search position | xs t | int
for $i, $x in enumerate($xs):
    if $x == $t:
        return $i
return -1
= finds a value in a sorted list by halving | binary_search bisect_search find_sorted | xs t | int
low, high = 0, len($xs) - 1
while low <= high:
    mid = (low + high) // 2
    if $xs[mid] == $t:
        return mid
    if $xs[mid] < $t:
        low = mid + 1
    else:
        high = mid - 1
return -1
= sorts a list by swapping neighbours | bubble_sort sort_list simple_sort | xs | list[int]
$n = len($xs)
for i in range($n):
    for j in range($n - 1 - i):
        if $xs[j] > $xs[j + 1]:
            $xs[j], $xs[j + 1] = $xs[j + 1], $xs[j]
return $xs
= sorts a list by inserting each item | insertion_sort insert_sort | xs | list[int]
for i in range(1, len($xs)):
    $x = $xs[i]
    j = i - 1
    while j >= 0 and $xs[j] > $x:
        $xs[j + 1] = $xs[j]
        j -= 1
    $xs[j + 1] = $x
return $xs
= sorts a list around a pivot | quicksort quick_sort qsort | xs | list[int]
if len($xs) <= 1:
    return $xs
pivot = $xs[0]
low = [$x for $x in $xs[1:] if $x < pivot]
high = [$x for $x in $xs[1:] if $x >= pivot]
return $f(low) + [pivot] + $f(high)
= checks whether a list is sorted | is_sorted check_sorted sorted_already | xs | bool
return all($a <= $b for $a, $b in zip($xs, $xs[1:]))
= counts how often a value occurs in a list | count_value occurrences count_of | xs t | int
return sum(1 for $x in $xs if $x == $t)
= counts how often a letter occurs in a string | count_letter count_char letter_count | s ch | int
return $s.count($ch)
= makes a string upper case | shout to_upper upper | s | str
return $s.upper()
= makes a string lower case | whisper to_lower lower | s | str
return $s.lower()
= capitalises every word of a string | capitalize_words title_case title | s | str
return " ".join($w.capitalize() for $w in $s.split())
= returns the longest word of a string | longest_word find_longest longest | s | str
return max($s.split(), key=len)
= returns the words of a string | words split_words get_words | s | list[str]
return $s.split()
= joins the items of a list with commas | join_items join_with_commas comma_list | xs | str
return ", ".join(str($x) for $x in $xs)
= removes the spaces from a string | remove_spaces strip_spaces no_spaces | s | str
return $s.replace(" ", "")
= repeats a string n times | repeat repeat_string times_string | s n | str
return $s * $n
= checks whether two words are anagrams | is_anagram anagram are_anagrams | a b | bool
return sorted($a) == sorted($b)
= returns a greeting | greet hello say_hello greeting | path | str
return f"Hello, {$path}!"
= prints a greeting | print_hello print_greeting welcome | path | None
print(f"Hello, {$path}!")
= returns the dot product of two lists | dot dot_product inner_product | xs ys | int
return sum($a * $b for $a, $b in zip($xs, $ys))
= adds two lists item by item | add_lists add_vectors vector_sum | xs ys | list[int]
return [$a + $b for $a, $b in zip($xs, $ys)]
= returns the items that two lists share | common intersection shared | xs ys | list[int]
return [$x for $x in $xs if $x in $ys]
= merges two lists | merge concat merge_lists join_lists | xs ys | list[int]
return $xs + $ys
= merges two dictionaries | merge_dicts combine update_dict | a b | dict
return {**$a, **$b}
= swaps the keys and values of a dictionary | invert invert_dict swap_keys | d | dict
return {value: key for key, value in $d.items()}
= returns the sorted keys of a dictionary | sorted_keys keys key_list | d | list
return sorted($d.keys())
= transposes a matrix | transpose flip_matrix | xs | list
return [list(row) for row in zip(*$xs)]
= reads a file | read_file read_text load_text | path | str
with open($path) as file:
    return file.read()
= reads the lines of a file | read_lines lines load_lines | path | list[str]
with open($path) as file:
    return [line.strip() for line in file]
= writes a text to a file | write_file save_text write_text | path s | None
with open($path, "w") as file:
    file.write($s)
= counts the lines of a file | count_lines n_lines | path | int
with open($path) as file:
    return sum(1 for line in file)
= returns the number of steps of the Collatz sequence | collatz collatz_steps | n | int
$r = 0
while $n != 1:
    if $n % 2 == 0:
        $n //= 2
    else:
        $n = 3 * $n + 1
    $r += 1
return $r
= converts a number to binary | to_binary binary int_to_binary | n | str
return bin($n)[2:]
= checks whether a number is positive | is_positive positive | x | bool
return $x > 0
= checks whether a number is a perfect square | is_square perfect_square | n | bool
$r = int($n ** 0.5)
return $r * $r == $n
= returns the distance between two numbers | distance dist gap | a b | int
return abs($a - $b)
= returns the second largest number of a list | second_largest second_max | xs | int
return sorted($xs)[-2]
= returns the range of a list | value_range spread range_of | xs | int
return max($xs) - min($xs)
= splits a list into chunks | chunks split_list chunked | xs n | list
return [$xs[$i:$i + $n] for $i in range(0, len($xs), $n)]
= solves the towers of Hanoi | hanoi towers | n a b c | None
if $n == 0:
    return
$f($n - 1, $a, $c, $b)
print($a, "->", $c)
$f($n - 1, $b, $a, $c)
'''
CLASSES = '''
class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        return self.items.pop()

    def is_empty(self):
        return not self.items
==
class Queue:
    def __init__(self):
        self.items = []

    def put(self, item):
        self.items.append(item)

    def get(self):
        return self.items.pop(0)

    def __len__(self):
        return len(self.items)
==
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def __repr__(self):
        return f"Point({self.x}, {self.y})"

    def distance(self, other):
        return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2) ** 0.5
==
class Rectangle:
    def __init__(self, width, height):
        self.width = width
        self.height = height

    def area(self):
        return self.width * self.height

    def perimeter(self):
        return 2 * (self.width + self.height)
==
class Circle:
    def __init__(self, radius):
        self.radius = radius

    def area(self):
        return 3.14159 * self.radius ** 2
==
class Counter:
    def __init__(self):
        self.count = 0

    def increment(self):
        self.count += 1

    def reset(self):
        self.count = 0
==
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        self.balance += amount

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
==
class Person:
    def __init__(self, name, age):
        self.name = name
        self.age = age

    def greet(self):
        return f"Hello, my name is {self.name}."
==
class Dog:
    def __init__(self, name):
        self.name = name

    def speak(self):
        return "Woof!"
==
class Node:
    def __init__(self, value, next=None):
        self.value = value
        self.next = next
'''


class Task:
    """One block of ``TASKS``: ``what`` it does ("returns the sum of a list"), names, parameters, result, bodies."""

    def __init__(self, block: str) -> None:
        head, body = block.split("\n", 1)
        self.what, names, parameters, self.result = (part.strip() for part in head.split("|"))
        self.names, self.parameters = names.split(), parameters.split()
        self.bodies = body.rstrip("\n").split("\n--\n")


ALL_TASKS = [Task(block) for block in TASKS.strip().removeprefix("= ").split("\n= ")]
ALL_CLASSES = [block.strip("\n") for block in CLASSES.split("\n==\n")]


def plainest(rng: np.random.Generator, choices: Sequence[str]) -> str:
    """The first choice half the time, else any."""
    return choices[0] if rng.random() < 0.5 else choices[int(rng.integers(len(choices)))]


def imperative(what: str) -> str:
    """"returns the sum" to "Return the sum": a docstring's first line."""
    verb, rest = what.split(" ", 1)
    plain = verb[:-3] + "y" if verb.endswith("ies") else verb[:-1]
    return f"{plain.capitalize()} {rest}"


def write(rng: np.random.Generator, task: Task, bare: bool = False, name: str = "") -> str:
    """One version of a task, under ``name`` if given; ``bare``: without type hints and docstring."""
    words = {"f": name or plainest(rng, task.names)}
    for word, pool in POOLS.items():  # no two variables share a name: $n and $x may both be "number"
        words[word] = plainest(rng, [name for name in pool if name not in words.values()])
    typed = not bare and rng.random() < 0.2
    parameters = [words[p] + (f": {HINTS.get(p, 'str')}" if typed else "") for p in task.parameters]
    head = f"def {words['f']}({', '.join(parameters)}){f' -> {task.result}' if typed else ''}:"
    lines = string.Template(plainest(rng, task.bodies)).substitute(words).split("\n")
    if not bare and rng.random() < 0.35:
        lines.insert(0, f'"""{imperative(task.what)}."""')
    return "\n".join([head, *("    " + line for line in lines)])


def function(rng: np.random.Generator) -> str:
    """A document: one function mostly, else two or three, or a class."""
    if rng.random() < 0.08:
        return ALL_CLASSES[rng.integers(len(ALL_CLASSES))] + "\n"
    n = 1 if rng.random() < 0.7 else int(rng.integers(2, 4))
    return "\n\n\n".join(write(rng, ALL_TASKS[rng.integers(len(ALL_TASKS))]) for _ in range(n)) + "\n"

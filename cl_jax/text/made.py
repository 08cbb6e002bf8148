"""Made text, for tests and for experiments without files: conversations with support, tales, and requests of kinds.

A document depends on its number alone, by a hash, so that the text is the same everywhere and a longer one begins with
a shorter one.
"""

import hashlib
import re
from collections.abc import Callable

from cl_jax.text.documents import Document

Grammar = dict[str, tuple[str, ...]]

NUMBERS: Grammar = {
    "digit": tuple("0123456789"),
    "order": ("{digit}{digit}{digit}{digit}{digit}", "{capital}{capital}-{digit}{digit}{digit}{digit}"),
    "capital": tuple("ABCDEFGHKLMNPRSTVWXZ"),
    "days": ("two", "three", "four", "five", "six", "ten"),
    "amount": ("{digit}{digit}.{digit}0", "1{digit}.99", "{digit}.95", "2{digit}{digit}.00"),
}
SUPPORT: Grammar = NUMBERS | {
    "product": (
        "kettle", "phone", "charger", "headset", "lamp", "router", "keyboard", "jacket", "backpack", "printer",
        "monitor", "toaster", "watch", "speaker", "camera", "blender", "chair", "tablet", "heater", "mixer",
    ),
    "person": ("Ana", "Ben", "Carla", "Dev", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kim", "Leo", "Maya"),
    "hello": ("Hi", "Hello", "Good morning", "Good evening", "Hi there", "Hello, support"),
    "fault": (
        "does not switch on", "arrived broken", "has a crack", "stops after {days} minutes", "makes a loud noise",
        "is the wrong colour", "gets far too hot", "came without its cable", "keeps restarting", "will not connect",
    ),
    "problem": (
        "my {product} {fault}. The order is {order}.",
        "I ordered a {product} {days} days ago and it is still not here. Order number {order}.",
        "I was charged {amount} twice for order {order}.",
        "I would like to return the {product} from order {order}.",
        "can I change the address of order {order}?",
        "my voucher over {amount} was refused when I paid for the {product}, order {order}.",
        "the {product} in order {order} {fault}, and I paid {amount} for it.",
        "where is my refund of {amount}? The order was {order}.",
    ),
    "sorry": (
        "I am sorry to hear that", "Thank you for letting us know", "I apologise for the trouble", "That is not right",
        "Thank you for contacting us, {person}", "I understand, and I am sorry",
    ),
    "look": (
        "I have found order {order}", "I am looking at order {order} now", "Let me check order {order}",
        "I can see the {product} in order {order}",
    ),
    "ask": (
        "Could you tell me your postcode?", "When did you first notice it?", "Would you like your money back?",
        "May I have the e-mail address of the account?", "Is the box still closed?", "How did you pay?",
    ),
    "answer": (
        "It is {digit}{digit}{digit}{digit} {capital}{capital}.", "Since yesterday.", "A refund, please.",
        "{person} at home dot com.", "No, I opened it.", "By card.", "A new one would be great.", "I do not remember.",
        "Yes, of course.", "About {days} days ago.",
    ),
    "solution": (
        "I have sent a new {product}; it arrives within {days} days.", "I have refunded {amount} to your card.",
        "Please send the {product} back with the label that I have mailed to you.",
        "I have changed order {order} as you asked.", "A colleague will call you within {days} hours.",
        "Please hold the button of the {product} for {days} seconds and try again.",
    ),
    "thanks": ("Thank you!", "Great, thanks.", "That helps, thank you.", "Perfect.", "Thanks a lot, {person}.", "OK."),
    "more": ("Is there anything else?", "Can I help you with anything else?", "Does that solve it for you?"),
    "no": ("No, that is all.", "No, thank you.", "That was it.", "Not today."),
    "bye": (
        "You are welcome. Have a nice day!", "Thank you for your patience, {person}.", "Have a good evening!",
        "We are glad to help. Goodbye!",
    ),
}  # fmt: skip
TURNS = (  # each a conversation: the customer begins
    ("{hello}, {problem}", "{sorry}. {look}. {ask}", "{answer}", "{solution} {more}", "{no}", "{bye}"),
    ("{hello}, {problem}", "{sorry}. {look}. {solution}", "{thanks}", "{bye}"),
    ("{hello}, this is {person}. {problem}", "{hello} {person}. {sorry}. {ask}", "{answer}", "{look}. {ask}",
     "{answer}", "{solution}", "{thanks}", "{more}", "{no}", "{bye}"),
    ("{problem}", "{look}. {ask}", "{answer}", "{sorry}. {solution} {more}", "{thanks} {no}", "{bye}"),
)  # fmt: skip
KEPT = ("order", "product", "person", "amount")  # the same throughout a conversation
PROSE: Grammar = {
    "who": (
        "the old fisherman", "a girl from the valley", "the miller's son", "the queen", "her brother", "a stranger",
        "the shepherd", "a grey fox", "the blind singer", "the youngest of the sisters", "a soldier", "the raven",
    ),
    "place": (
        "the river", "the dark forest", "a ruined tower", "the harbour", "the meadow", "the frozen lake", "the mill",
        "an orchard", "the mountain pass", "a lonely inn", "the marsh", "the white cliffs",
    ),
    "thing": (
        "a silver bell", "an old letter", "a loaf of bread", "the lantern", "a wooden flute", "a handful of seeds",
        "the broken sword", "a black stone", "a woollen cloak", "the golden key",
    ),
    "went": ("walked", "wandered", "rode", "crept", "ran", "sailed", "climbed", "hurried"),
    "how": ("slowly", "without a word", "in silence", "with a heavy heart", "before dawn", "all night", "laughing"),
    "did": ("found", "carried", "hid", "dropped", "remembered", "buried", "stole", "gave away", "dreamed of"),
    "sky": ("moon", "wind", "snow", "rain", "sun", "mist", "storm"),
    "rose": ("rose", "fell", "faded", "wept", "sang", "turned"),
    "adjective": ("pale", "bitter", "quiet", "endless", "gentle", "strange", "forgotten", "golden"),
    "when": (
        "Once", "Long ago", "That winter", "At dusk", "In the spring", "Years later", "Before the harvest", "One night",
    ),
    "sentence": (
        "{when} {who} {went} {how} to {place}.", "{when}, beside {place}, {who} {did} {thing}.",
        "The {sky} {rose} over {place}, {adjective} and {adjective}.", "Nobody knew why {who} {did} {thing}.",
        "\"Do not go to {place},\" said {who}, \"for the {sky} is {adjective}.\"",
        "And so {who} {went} on, past {place}, until the {sky} {rose}.",
        "There was {thing} where {who} had slept, and a {adjective} {sky} above {place}.",
        "{who} and {who} {went} together through the {adjective} {sky}.",
        "It was a {adjective} evening; the {sky} {rose}, and {who} {did} {thing} near {place}.",
    ),
    "paragraph": (
        "{sentence} {sentence} {sentence}\n", "{sentence} {sentence} {sentence} {sentence} {sentence}\n",
        "{sentence} {sentence} {sentence} {sentence}\n",
    ),
    "tale": ("{paragraph}\n{paragraph}\n{paragraph}", "{paragraph}\n{paragraph}", "{paragraph}"),
}  # fmt: skip

REQUESTS: Grammar = SUPPORT | {
    "request": (
        "Where is my {product}, {order}?", "My {product} {fault}.", "I want to return the {product} of {order}.",
        "{hello}, is the {product} still in stock?", "How much is a {product}?", "The {product} {fault}, what now?",
    )
}  # fmt: skip


class _Draws:
    """Whole numbers from a hash of a name: the same with every version of Python and NumPy."""

    def __init__(self, name: str):
        self._name, self._blocks, self._left = name, 0, b""

    def below(self, bound: int) -> int:
        if not self._left:
            self._left = hashlib.sha256(f"{self._name} {self._blocks}".encode()).digest()
            self._blocks += 1
        drawn, self._left = int.from_bytes(self._left[:4], "big"), self._left[4:]
        return drawn % bound


def support(num_bytes: int) -> list[Document]:
    """Conversations of a customer and an agent, of whom the agent's lines are counted, up to that many bytes."""
    return _until(num_bytes, _conversation)


def prose(num_bytes: int) -> list[Document]:
    """Tales of one to three paragraphs, counted, up to that many bytes."""
    return _until(num_bytes, _tale)


def requests(num_classes: int, each: int) -> list[tuple[str, str]]:
    """Different short requests about a product, which is the label: `each` of every class, at most 20 classes."""
    made: list[tuple[str, str]] = []
    seen: set[str] = set()
    number = 0
    while len(made) < num_classes * each:
        product = SUPPORT["product"][len(made) % num_classes]
        text = _capitals(_expand("{request}", REQUESTS, _Draws(f"request {number}"), {"product": product}))
        number += 1
        if text not in seen:
            seen.add(text)
            made.append((text, product))
    return made


def _until(num_bytes: int, make: Callable[[int], Document]) -> list[Document]:
    documents, size = [], 0
    while True:
        document = make(len(documents))
        size += len(document.text)  # ASCII
        if size > num_bytes:
            return documents
        documents.append(document)


def _conversation(number: int) -> Document:
    draws = _Draws(f"support {number}")
    kept = {symbol: _expand(f"{{{symbol}}}", SUPPORT, draws, {}) for symbol in KEPT}
    pieces: list[tuple[str, bool]] = []
    asked = ""  # pieces that are not counted are one with the name that follows
    for turn, template in enumerate(TURNS[draws.below(len(TURNS))]):
        said = _capitals(_expand(template, SUPPORT, draws, kept))
        if turn % 2:
            pieces += [(f"{asked}Agent:", False), (f" {said}\n", True)]
            asked = ""
        else:
            asked = f"Customer: {said}\n"
    if asked:
        pieces.append((asked, False))
    return Document(tuple(pieces), f"made#{number}")


def _tale(number: int) -> Document:
    return Document(((_capitals(_expand("{tale}", PROSE, _Draws(f"prose {number}"), {})), True),), f"made#{number}")


def _expand(template: str, grammar: Grammar, draws: _Draws, kept: dict[str, str]) -> str:
    def one(match: re.Match[str]) -> str:
        if match[1] in kept:
            return kept[match[1]]
        choices = grammar[match[1]]
        return _expand(choices[draws.below(len(choices))], grammar, draws, kept)

    return re.sub(r"\{(\w+)\}", one, template)


def _capitals(text: str) -> str:
    """With a capital letter at the start of a sentence."""
    return re.sub(r"(^|[.!?] |\n)([a-z])", lambda match: match[1] + match[2].upper(), text)

"""From a prompt to the factors that it names, in English and Chinese."""

import re

from tinywan.theatre.scene import COMPANIONS

# Each word is a regular expression; among those that begin at one place the longest counts.
_NOUNS: dict[tuple[str, str], str] = {
    ("garment", "qipao"): r"\b(?:qipaos?|cheongsams?)\b|旗袍",
    ("garment", "coat"): r"\b(?:over)?coats?\b|大衣|外套",
    ("garment", "shirt"): r"\bshirts?\b|衬衫|衬衣",
    ("garment", "raincoat"): r"\braincoats?\b|雨衣",
    ("garment", "sweater"): r"\b(?:sweaters?|jumpers?|pullovers?)\b|毛衣",
    ("garment", "vest"): r"\b(?:vests?|waistcoats?)\b|背心|马甲",
    ("prop", "umbrella"): r"\b(?:umbrellas?|parasols?)\b|雨?伞",
    ("prop", "lantern"): r"\blanterns?\b|灯笼",
}
_OTHERS: dict[tuple[str, str], str] = {
    ("subject", "woman"): r"\b(?:woman|women|lady)\b|女子|女人|女士|姑娘",
    ("subject", "man"): r"\b(?:man|men|gentleman)\b|男子|男人|先生|男士",
    ("subject", "child"): r"\b(?:child|children|kid|boy|girl)\b|孩|儿童",
    ("subject", "dog"): r"\b(?:dogs?|pupp(?:y|ies))\b|狗",
    ("place", "alley"): r"\b(?:alley|lane)s?\b|巷",
    ("place", "park"): r"\bparks?\b|公园",
    ("place", "beach"): r"\b(?:beach|seaside|seashore)\b|海滩|沙滩|海边",
    ("place", "street"): r"\bstreets?\b|街",
    ("weather", "rain"): r"\brain(?:s|y|ing|ed|fall)?\b|雨(?![衣伞])",
    ("weather", "snow"): r"\bsnow(?:s|y|ing|ed|fall|flakes?)?\b|雪",
    ("weather", "clear"): r"\b(?:clear|sunny)\b|晴",
    ("action", "walk"): r"\b(?:walk|stroll|wander)(?:s|ing|ed)?\b|漫步|散步|行走|走",
    ("action", "run"): r"\b(?:runs?|running|ran|jogs?|jogging)\b|跑",
    ("action", "stand"): r"\b(?:stands?|standing|stood)\b|站",
    ("direction", "left"): r"\bleft(?:wards?)?\b|左",
    ("direction", "right"): r"\bright(?:wards?)?\b|右",
}
_CAST: dict[tuple[str, str], str] = {
    **{(factor, value): words for (factor, value), words in _OTHERS.items() if factor == "subject"},
    ("companion", "cat"): r"\b(?:cats?|kitt(?:en|ens|y))\b|猫",
}
# Words of the camera come first: its left and right are not those of the subject.
_SIDE = r"(?:\s+slowly)?(?:\s+(?:to|towards?)(?:\s+the)?)?\s+"
_CAMERA: dict[tuple[str, str], str] = {
    ("camera", "still"): r"\b(?:still|static|fixed) (?:camera|shot)\b|镜头(?:静止|不动|固定)|固定镜头",
    ("camera", "pan left"): rf"\bpan(?:s|ning|ned)?{_SIDE}left\b|镜头[^，。,.右]{{0,4}}左[摇移平]?",
    ("camera", "pan right"): rf"\bpan(?:s|ning|ned)?{_SIDE}right\b|镜头[^，。,.左]{{0,4}}右[摇移平]?",
    ("camera", "zoom in"): r"\bzoom(?:s|ing|ed)?(?: slowly)? in\b|镜头[^，。,.]{0,4}(?:推近|拉近|推进)",
}  # fmt: skip
_LOOKS: dict[tuple[str, str], str] = {
    ("look", "monochrome"): r"\bblack[\s-]and[\s-]white\b|\bmonochrome\b|黑白",
    ("look", "film"): r"\bfilm\b|胶片|老电影|复古",
}
_WIND = re.compile(r"\bwind(?:y|s|swept)?\b|风(?![格景衣筝光])")
_COLORS: dict[str, str] = {
    "red": r"\bred\b|(?<!粉)红",
    "yellow": r"\byellow\b|黄(?!昏)",
    "green": r"\bgreen\b|绿",
    "blue": r"\bblue\b|蓝",
    "purple": r"\b(?:purple|violet)\b|紫",
    "pink": r"\bpink\b|粉红|粉",
}
_FURS: dict[str, str] = {
    "white": r"\bwhite\b|白",
    "black": r"\bblack\b|黑",
    "brown": r"\bbrown\b|[棕褐]",
}
_CLOTHES_OF_COMPANION = re.compile(r"\s+(?:dressed\s+|all\s+)?in\s+(\w+)")
_BETWEEN = re.compile(
    r"(?:色|的|[\s-]|\b(?:silk|paper|long|short|wool(?:len)?|little|small|big)\b|纸|长|小|大|丝绸){0,5}"
)
_BETWEEN_FUR = re.compile(r"(?:色|的|[\s-]|\b(?:little|small|big|young)\b|衣服|[衣小大男女]){0,5}")


def _find(words: dict[tuple[str, str], str], text: str) -> list[tuple[int, int, str, str]]:
    """(start, stop, factor, value) of each word found, in order of the text."""
    found = [
        (match.start(), match.end(), factor, value)
        for (factor, value), pattern in words.items()
        for match in re.finditer(pattern, text)
    ]
    return sorted(found)


def _blank(words: dict[tuple[str, str], str], text: str) -> str:
    """Put spaces in place of the words."""
    for pattern in words.values():
        text = re.sub(pattern, lambda match: " " * len(match.group()), text)
    return text


def parse(text: str) -> dict[str, str]:
    """Find the factors of a scene that a prompt names.

    A colour belongs to the garment or prop right after it. Of two values for one factor, as in
    "a street beside a park", the first counts. Of two who act, the first is the subject, and a dog, cat or
    child after it is the companion.

    Args:
        text: a prompt in English, Chinese, or both.

    Returns:
        Field of `Scene` -> value, without the fields that the prompt does not name.
    """
    lowered = text.lower() if len(text.lower()) == len(text) else text
    factors: dict[str, str] = {}
    for _, _, factor, value in _find(_CAMERA, lowered):
        factors.setdefault(factor, value)
    for factor, value in _LOOKS:
        if re.search(_LOOKS[factor, value], lowered):
            factors.setdefault(factor, value)
    lowered = _blank(_LOOKS, _blank(_CAMERA, lowered))
    nouns = _find(_NOUNS, lowered)
    for _, _, factor, value in (*nouns, *_find(_OTHERS, lowered)):
        factors.setdefault(factor, value)
    colors = _find({("color", color): pattern for color, pattern in _COLORS.items()}, lowered)
    for start, _, factor, _ in nouns:
        for _, stop, _, color in reversed(colors):
            if stop <= start and _BETWEEN.fullmatch(lowered, stop, start):
                factors.setdefault(f"{factor}_color", color)
                break
    if _WIND.search(lowered):
        factors["wind"] = "windy"
    return {**factors, **_companion(lowered, factors.get("subject", ""))}


def _companion(text: str, subject: str) -> dict[str, str]:
    """The companion and its colour, that of its fur or, after it, of its clothes."""
    others = [
        (start, stop, kind)
        for start, stop, _, kind in _find(_CAST, text)
        if kind in COMPANIONS and kind != subject
    ]
    if not others:
        return {}
    start, stop, kind = others[0]
    found = {"companion": kind}
    clothes = _CLOTHES_OF_COMPANION.match(text, stop)
    if clothes and clothes.group(1) in _FURS:
        found["companion_color"] = clothes.group(1)
    for _, end, _, color in _find({("color", c): words for c, words in _FURS.items()}, text):
        if end <= start and _BETWEEN_FUR.fullmatch(text, end, start):
            found["companion_color"] = color
    return found

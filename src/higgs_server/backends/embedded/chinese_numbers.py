"""Numbers in a Chinese text, written out as they are read: dates, times, money, percent, units, telephone numbers.

Text in, text out, in half-width characters; knows nothing of pinyin or phonemes. Integers are read by cn2an.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from re import Match

from cn2an import an2cn

from higgs_server.text.language import UNIT_PATTERN, UNITS

_DIGITS = "零一二三四五六七八九"
_MOST_DIGITS = 12
"""A longer integer is an identifier: nobody follows it in 千亿."""
_NUMBER = r"(?<!\d)\d+(?:\.\d+)?"
_MONEY = {"¥": "元", "$": "美元", "€": "欧元", "£": "英镑"}
_COUNTED = (
    "个|只|位|本|条|张|件|次|天|年|周|小时|分钟|秒|点|岁|元|块|美元|欧元|英镑|杯|瓶|片|份|家|间|辆|台|套|双|对|层|遍|种|名|倍|"
    "米|公里|厘米|毫米|平方|立方|升|毫升|吨|公斤|斤|克|千|万|亿|百万|座|部|颗|朵|头|匹|场|句|段|门|把|顿|口|组|项|篇|首|艘|架|"
    "袋|盒|包|箱|支|根|棵|群|道|步|章|节|届|圈|排|列|支|枚|滴|笔|批|所|扇|摄氏度|度"
)
_SIGNS = {
    "+": "加", "×": "乘", "÷": "除以", "=": "等于", "≈": "约等于", "≠": "不等于", "≤": "小于等于", "≥": "大于等于",
    "±": "正负", "√": "根号", "&": "和", "½": "二分之一",
}  # fmt: skip
_SIGNS_BETWEEN_NUMBERS = {"*": "乘", "<": "小于", ">": "大于"}
"""Elsewhere these are marks of emphasis or of tags."""


def write_out_numbers(text: str) -> str:
    """The text with every number in Chinese characters; what is no number stays as it is."""
    for pattern, reading in _RULES:
        text = pattern.sub(reading, text)
    return text


def _digits(number: str, one: str = "一") -> str:
    """Digit by digit; telephone numbers say `幺` for 1."""
    return "".join(one if digit == "1" else _DIGITS[int(digit)] for digit in number)


def _integer(number: str) -> str:
    if len(number) > _MOST_DIGITS or (len(number) > 1 and number[0] == "0"):
        return _digits(number)
    words: str = an2cn(number)
    return "两" + words[1:] if words[:2] in ("二千", "二万", "二亿") else words


def _number(number: str) -> str:
    """`3.14` -> 三点一四; a sign is read 负."""
    whole, point, decimals = number.lstrip("-−").partition(".")
    sign = "负" if number[0] in "-−" else ""
    return sign + _integer(whole) + ("点" + _digits(decimals) if point else "")


def _date(match: Match[str]) -> str:
    year, month, day = match.groups()
    return f"{_digits(year)}年{int(month)}月{int(day)}日"


def _clock(match: Match[str]) -> str:
    hour, minute, second = match.groups()
    words = ("两" if int(hour) == 2 else _integer(str(int(hour)))) + "点"
    if minute != "00" or second:
        words += _integer(minute) + "分" if minute != "00" else "零分"
    return words + (_integer(second) + "秒" if second else "")


def _telephone(match: Match[str]) -> str:
    groups = re.findall(r"\d+", match[0])
    if len(groups[-1]) == 11:
        groups[-1:] = [groups[-1][:3], groups[-1][3:7], groups[-1][7:]]
    return ", ".join(_digits(group, one="幺") for group in groups)


def _money(match: Match[str]) -> str:
    sign, number, magnitude = match.groups()
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return number + magnitude.strip() + _MONEY[sign]


def _temperature(match: Match[str]) -> str:
    sign, number, scale = match.groups()
    return ("零下" if sign else "") + number + {"C": "摄氏度", "F": "华氏度"}.get((scale or "")[:1], "度")


def _year(match: Match[str]) -> str:
    year = match[1]
    return _number(year) if year[1:] == "000" and year[0] != "2" else _digits(year)


_A = re.ASCII
_BEFORE = r"(?<![A-Za-z\d.])"
"""Where a number begins that is not the tail of another one or of a name."""
_END = r"(?!\.?\d)"
"""Where a number ends; a full stop after it is the sentence's."""
_MINUS = r"(?:(?<![-−\dA-Za-z])[-−])?"
"""Normalisation writes a dash as two hyphens: the second is no sign."""
_DEGREES = r"(?:°|degrees (?=[CF]))(?:(Celsius|Fahrenheit|[CF])(?![A-Za-z]))?"
"""The scale is the group. Normalisation writes °C as `degrees Celsius`."""
_LOWER_END = (
    rf"(\d(?:\s?(?:[%°月日号时分楼折半]|{UNIT_PATTERN}|{_COUNTED})){{0,2}}|[{_DIGITS}十两]点|(?:周|星期)[{_DIGITS}])"
)
_UPPER_END = rf"(?=(?:第|[上下]午|晚上|中午|凌晨)?[¥$€£]?\d|[{_DIGITS}十两]+[点年]|周|星期|次日)"
_CALLED_A_NUMBER = r"(?:拨打?|热线|电话|号码|密码|验证码|邮编|[编账卡学单证]号)[是为]?:?\s?"
_RATE = (
    "(?:人|位|个|件|份|本|张|杯|瓶|袋|盒|箱|桶|包|只|台|桌|组|户|年|月|周|天|日|晚|次|小时|分钟|秒|千克|公斤|斤|克|吨|升|"
    "平米|平方米|立方米|公里|米|度)(?![一二三四五六日末本民上])"
)
"""What a slash counts by, unlike `3天/周日`, `100元/人民币`, `8点/晚上`."""
_LABEL = r"(?<![一-鿿])(?:[图表例题]|步骤|问题|方案|任务|选项|附件|示例|案例)\s?\d+"

_RULES: list[tuple[re.Pattern[str], str | Callable[[Match[str]], str]]] = [
    # Titles, as normalisation writes 《》; `1<2且3>2` is none.
    (re.compile(r"(?<!\d)(?<!\d )<([^<>]{1,80})>"), r"“\1”"),
    (re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)", _A), lambda m: m[0].replace(",", "")),
    # Telephone numbers: mobile, landline, service numbers, and whatever the text calls one.
    (re.compile(rf"(?<![\d.+-])(?:\+?86[- ]?)?1[3-9]\d(?:\d{{8}}|[- ]\d{{4}}[- ]\d{{4}}){_END}", _A), _telephone),
    (
        re.compile(rf"(?<![\d.-])(?:0\d{{2,3}}[- ]\d{{3,4}}[- ]?|[48]00[- ]\d{{3,4}}[- ])\d{{3,4}}{_END}", _A),
        _telephone,
    ),
    (
        re.compile(rf"({_CALLED_A_NUMBER})(\d{{6,}}|\d{{3,5}}(?!\.?\d|\s?[余多万亿元个条张位份次件名]))", _A),
        lambda m: m[1] + _digits(m[2], one="幺"),
    ),
    (re.compile(r"(?<![\d.])(?:1[12]\d|911|999|1[02]\d{3}|9[56]\d{3})(?=热线|电话|报警|急救)", _A), _telephone),
    # Ranges, while years and times are still digits; first the hyphens and colons that are none.
    (re.compile(rf"(?<!\d)(\d{{4}})[-/.](0?[1-9]|1[0-2])[-/.](3[01]|[12]\d|0?[1-9])日?{_END}", _A), _date),
    (re.compile(rf"(?<=\d)\s*[-−]\s*(?={_NUMBER}\s*=)", _A), "减"),
    (re.compile(r"(比分[是为]?:?\s?\d+)\s*-\s*(?=\d)", _A), r"\1比"),
    (re.compile(r"(比[分例率][是为]?:?\s?\d+)\s*:\s*(?=\d)", _A), r"\1比"),
    (re.compile(rf"({_LABEL})\s*:\s*(?=\d)", _A), r"\1, "),
    (re.compile(rf"{_LOWER_END}\s*(?:[-~–−]\s*{_UPPER_END}|~\s*(?=[-−]\d))", _A), r"\1到"),
    # Years and times.
    (re.compile(r"(?<![\d.:])0(?=[1-9]\s?[月日号点时])", _A), ""),
    (re.compile(r"(?<!\d)(\d{4}(?=\s?[年届]|[至到]\d{4}\s?年)|(?:19|20)\d\d(?=级))", _A), _year),
    (
        re.compile(r"(?<![\d.])(?:\d{2}(?=年(?:代|级|\d{1,2}月))|(?<![满过达])(?<!(?<!后)[到至])[05-9][05](?=后))", _A),
        lambda m: _digits(m[0]),
    ),
    (re.compile(r"(?<!\d)(?<!\d:)([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:])", _A), _clock),
    # Signs between numbers: versions, ratios, sums, fractions.
    (re.compile(rf"{_BEFORE}\d+(?:\.\d+){{2,}}", _A), lambda m: "点".join(map(_integer, m[0].split(".")))),
    (re.compile(r"(?<=\d)\s*:\s*(?=\d)", _A), "比"),
    (re.compile(r"(?<=\d)\s*([*<>])\s*(?=\d)", _A), lambda m: _SIGNS_BETWEEN_NUMBERS[m[1]]),
    (re.compile(rf"{_BEFORE}(\d+)/(\d+)(?![\d/])", _A), r"\2分之\1"),
    # Numbers with a unit.
    (re.compile(rf"([¥$€£])\s*({_NUMBER})(\s*[百千万亿]*)(?:[美欧]?元|英镑)?", _A), _money),
    (re.compile(rf"{_BEFORE}({_MINUS})({_NUMBER})\s?{_DEGREES}", _A), _temperature),
    (re.compile(rf"({_MINUS}{_NUMBER})\s?%", _A), lambda m: "百分之" + _number(m[1])),
    (re.compile(rf"({_MINUS}{_NUMBER})\s?‰", _A), lambda m: "千分之" + _number(m[1])),
    (re.compile(rf"(?<=\d)\s?({UNIT_PATTERN})(?![A-Za-z])", _A), lambda m: UNITS[m[1]]),
    (re.compile(rf"(?<![\d.第])(\d[\d.]*\s?(?:{_COUNTED}){{1,2}})(?<![点岁])/(?={_RATE})", _A), r"\1每"),
    (re.compile(rf"(?<![\d.第A-Za-z])(?<!(?<![-−])[-−])2(?!\s?年级)(?=\s?(?:{_COUNTED}))", _A), "两"),
    # What is left.
    (re.compile(rf"{_MINUS}{_NUMBER}", _A), lambda m: _number(m[0])),
    (re.compile(f"[{''.join(_SIGNS)}]", _A), lambda m: _SIGNS[m[0]]),
]

from __future__ import annotations

import random
import sys
import time
import warnings
from typing import Any

import pytest
from pypinyin.constants import PHRASES_DICT, PINYIN_DICT

from higgs_server.backends.embedded.chinese import phonemize_chinese
from higgs_server.backends.embedded.chinese_numbers import write_out_numbers


@pytest.fixture(scope="module")
def misaki() -> Any:
    """The reference: what Kokoro v1.0 was trained with."""
    if sys.version_info >= (3, 13):
        pytest.importorskip("misaki.zh", reason="misaki does not install on Python 3.13 and later")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jieba's own
        from misaki.zh import ZHG2P
    return ZHG2P


def expected(misaki: Any, word: str) -> str:
    return str(misaki.word2ipa(word)).replace("\u032f", "")


def test_every_character_sounds_as_misaki_reads_it(misaki: Any) -> None:
    characters = [chr(code) for code in range(0x4E00, 0xA000) if code in PINYIN_DICT][::3]
    assert len(characters) > 6000
    assert [each for each in characters if phonemize_chinese(each) != expected(misaki, each)] == []


def test_phrases_sound_as_misaki_reads_them(misaki: Any) -> None:
    phrases = random.Random(0).sample(sorted(PHRASES_DICT), 3000)
    assert [each for each in phrases if phonemize_chinese(each).replace(" ", "") != expected(misaki, each)] == []


def test_sentences_sound_as_misaki_reads_them(misaki: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = [misaki()(sentence)[0] for sentence in SENTENCES]
    ours = [phonemize_chinese(misaki.map_punctuation(sentence)) for sentence in SENTENCES]
    different = [
        sentence
        for sentence, theirs, mine in zip(SENTENCES, reference, ours, strict=True)
        if theirs.replace(" ", "") != mine.replace(" ", "")
    ]
    # jieba cuts these into other words than pypinyin, and a character's reading hangs on its word.
    assert len(SENTENCES) == 100
    assert different == ["飞机马上就要起飞了，请系好安全带。", "周末我们打算去爬山，你要不要一起来？"]


def test_words_are_apart() -> None:
    assert phonemize_chinese("今天我们散步") == "ʨi→n tʰjɛ→n wo↓mən sa↘npu↘"


def test_traditional_rare_and_neutral() -> None:
    assert phonemize_chinese("歷史") == phonemize_chinese("历史") == "li↘ ʂɨ↓"
    assert phonemize_chinese("㕷𠀁") == "xwa↘ ʨʰi→"
    assert phonemize_chinese("〇") == phonemize_chinese("零")
    assert phonemize_chinese("我们") == "wo↓mən"
    assert phonemize_chinese("花儿").replace(" ", "") == "xwa→ɚ↗"


def test_a_character_without_a_reading_is_left_out() -> None:
    assert phonemize_chinese("㕷好\U0003ffff") == phonemize_chinese("㕷") + " xau↓"
    assert phonemize_chinese("\U0003ffff") == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("2024年3月5日", "二零二四年三月五日"),
        ("2024-03-05", "二零二四年三月五日"),
        ("2024/3/5", "二零二四年三月五日"),
        ("2020-2024年", "二零二零到二零二四年"),
        ("1000年", "一千年"),
        ("20年", "二十年"),
        ("98年5月", "九八年五月"),
        ("90年代", "九零年代"),
        ("10:30", "十点三十分"),
        ("2:05", "两点零五分"),
        ("上午9:00", "上午九点"),
        ("12:30:15", "十二点三十分十五秒"),
        ("8:30-9:30", "八点三十分到九点三十分"),
        ("3:2", "三比二"),
        ("3.14", "三点一四"),
        ("0.05", "零点零五"),
        ("-5", "负五"),
        ("-5度", "负五度"),
        ("-5°C", "零下五摄氏度"),
        # As normalisation writes 32°C, and a number before a full stop.
        ("32 degrees Celsius", "三十二摄氏度"),
        ("-5 degrees Celsius", "零下五摄氏度"),
        ("18 degrees Celsius-25 degrees Celsius", "十八摄氏度到二十五摄氏度"),
        ("100 degrees Fahrenheit", "一百华氏度"),
        ("13812345678.", "幺三八, 幺二三四, 五六七八."),
        ("010-12345678.", "零幺零, 幺二三四五六七八."),
        ("2025-11-03.", "二零二五年十一月三日."),
        ("50%", "百分之五十"),
        ("-0.5%", "百分之负零点五"),
        ("10%-20%", "百分之十到百分之二十"),
        ("3-5个", "三到五个"),
        ("3~5天", "三到五天"),
        ("1/2", "二分之一"),
        ("1,234,567", "一百二十三万四千五百六十七"),
        ("¥12.50", "十二点五元"),
        ("$3.5万", "三点五万美元"),
        ("1.5亿", "一点五亿"),
        ("2个", "两个"),
        ("2点", "两点"),
        ("2小时", "两小时"),
        ("12个", "十二个"),
        ("第2个", "第二个"),
        ("2月2日", "二月二日"),
        ("22.2米", "二十二点二米"),
        ("200", "二百"),
        ("2500", "两千五百"),
        ("110000", "十一万"),
        ("10", "十"),
        ("007", "零零七"),
        ("13812345678", "幺三八, 幺二三四, 五六七八"),
        ("+86 138-1234-5678", "八六, 幺三八, 幺二三四, 五六七八"),
        ("010-12345678", "零幺零, 幺二三四五六七八"),
        ("拨打110", "拨打幺幺零"),
        ("12345678901234567890", "一二三四五六七八九零一二三四五六七八九零"),
        ("5km/h", "五公里每小时"),
        ("2kg", "两公斤"),
        ("1.2.3", "一点二点三"),
        ("10-3=7", "十减三等于七"),
        ("2+3=5", "二加三等于五"),
        ("2×3", "二乘三"),
        ("你好-世界*", "你好-世界*"),
        # As normalisation writes full-width punctuation.
        ("营业时间:9:00-18:00", "营业时间:九点到十八点"),
        ("时间:14:30", "时间:十四点三十分"),
        ("用时:1:30:45", "用时:一点三十分四十五秒"),
        ("比例:16:10", "比例:十六比十"),
        ("比分是3-2", "比分是三比二"),
        ("图3:5种方法", "图三, 五种方法"),
        ("步骤1:20克糖", "步骤一, 二十克糖"),
        ("题目10:30公布", "题目十点三十分公布"),
        ("5月1日-7日", "五月一日到七日"),
        ("5月1日~7日", "五月一日到七日"),
        ("2024年1月-6月", "二零二四年一月到六月"),
        ("2020年-2024年", "二零二零年到二零二四年"),
        ("2020至2024年", "二零二零至二零二四年"),
        ("2024年5月1日-2024年5月7日", "二零二四年五月一日到二零二四年五月七日"),
        ("2024-05-01~2024-05-07", "二零二四年五月一日到二零二四年五月七日"),
        ("100元-200元", "一百元到二百元"),
        ("¥100-¥200", "一百元到二百元"),
        ("10kg-20kg", "十公斤到二十公斤"),
        ("1万-2万", "一万到两万"),
        ("5折-8折", "五折到八折"),
        ("第1章-第3章", "第一章到第三章"),
        ("上午9:00-下午5:00", "上午九点到下午五点"),
        ("十点-十一点", "十点到十一点"),
        ("周一-周日", "周一到周日"),
        ("-5%~-3%", "百分之负五到百分之负三"),
        ("-10 degrees Celsius~-5 degrees Celsius", "零下十摄氏度到零下五摄氏度"),
        ("温度是-3.5度", "温度是负三点五度"),
        ("答案--42", "答案--四十二"),
        ("--3天内", "--三天内"),
        ("--2个人", "--两个人"),
        ("跌了--3%", "跌了--百分之三"),
        ("电话:62345678", "电话:六二三四五六七八"),
        ("请拨打:110", "请拨打:幺幺零"),
        ("热线是12345", "热线是幺二三四五"),
        ("客服电话:4008208820", "客服电话:四零零八二零八八二零"),
        ("021-6234-5678", "零二幺, 六二三四, 五六七八"),
        ("验证码为:123456", "验证码为:幺二三四五六"),
        ("120急救", "幺二零急救"),
        ("起码100人", "起码一百人"),
        ("2024 年 5 月 1 日", "二零二四 年 五 月 一 日"),
        ("2024年05月01日", "二零二四年五月一日"),
        ("2024届毕业生", "二零二四届毕业生"),
        ("2024级新生", "二零二四级新生"),
        ("1200级台阶", "一千二百级台阶"),
        ("80后和00后", "八零后和零零后"),
        ("涨到3.50后是3.05点", "涨到三点五零后是三点零五点"),
        ("小学2年级", "小学二年级"),
        ("<流浪地球2>10天", "“流浪地球二”十天"),
        ("5>3", "五大于三"),
        ("1<2且3>2", "一小于二且三大于二"),
        ("100元/月", "一百元每月"),
        ("¥100/月", "一百元每月"),
        ("3次/天", "三次每天"),
        ("¥99.9元", "九十九点九元"),
        ("$100美元", "一百美元"),
    ],
)
def test_numbers_are_written_out(text: str, words: str) -> None:
    assert write_out_numbers(text) == words


def test_the_time_grows_with_the_length() -> None:
    start = time.perf_counter()
    for text in ("1" * 20_000, "0" * 20_000, "1-" * 10_000, "5元~" * 7_000, "<1" * 10_000, "电话1" * 7_000):
        write_out_numbers(text)
    assert time.perf_counter() - start < 5


SENTENCES = """\
今天天气很好，我们一起去公园散步吧。
他从小就喜欢读书，尤其是历史和科学方面的。
请问去火车站怎么走？
这家餐厅的菜又便宜又好吃。
昨天晚上下了一场大雨，马路上到处都是水。
妈妈正在厨房里做饭，爸爸在客厅看报纸。
我觉得这个问题很难回答。
银行行长正在开会，请稍等一会儿。
她长得很漂亮，头发长长的。
音乐会几点开始？我们快来不及了！
重庆的火锅又麻又辣，我重新尝了一次。
学校的图书馆有很多有意思的书。
科学家们发现了一种新的材料，可以大大提高电池的容量。
老师让我们把作业交给班长。
小明的爷爷是一位著名的画家。
他朝着朝阳的方向一直走。
会计说这个月的账目已经核对完了。
这本小说讲述了一个关于友谊的故事。
人工智能正在改变我们的生活方式。
中国的首都是北京，最大的城市是上海。
我昨天在商店买了一双新鞋子。
孩子们在草地上快乐地跑来跑去。
请把窗户关上，外面太吵了。
这件事情得慢慢来，不能着急。
医生建议他多喝水，早点睡觉。
春天来了，花儿都开了。
他说话的声音很小，我几乎听不见。
我们应该保护环境，节约用水。
飞机马上就要起飞了，请系好安全带。
虽然天很冷，但是大家都很高兴。
经济的发展离不开教育的进步。
他把钥匙忘在办公室里了。
这条路通向山顶，沿途风景优美。
她弹钢琴弹得非常好。
政府宣布了新的税收政策。
我还没有还他的书。
地铁里人很多，几乎没有空位。
那只猫在沙发上睡着了。
请你再说一遍，我没听清楚。
这座桥建于明朝，已经有几百年的历史。
语音合成技术让机器能够像人一样说话。
医院的走廊里挂着一幅山水画。
如果明天下雨，比赛就会推迟。
他们终于找到了丢失的行李。
夜深了，城市渐渐安静下来。
我对这个结果感到非常满意。
周末我们打算去爬山，你要不要一起来？
服务员，请给我一杯热咖啡。
农民们正在田里收割小麦。
警察很快就抓住了那个小偷。
她的梦想是成为一名宇航员。
这台电脑的速度比以前快多了。
我弟弟今年刚上大学，学的是数学专业。
月亮从东边升起来，照亮了整个村庄。
不要把鸡蛋放在同一个篮子里。
他一边走路一边听音乐。
这是我第一次来到这个城市。
邮局就在银行的对面，走过去五分钟。
大家好，欢迎收听今天的节目！
时间过得真快，一转眼就毕业了。
我们公司的总部设在深圳。
他是个勇敢而善良的人。
考试的时候要认真审题，仔细检查。
树上的苹果红了，可以摘了。
海边的空气非常新鲜。
姐姐给我讲了一个有趣的笑话。
昨天的足球比赛真是太精彩了！
图书馆里禁止大声喧哗。
这种药每天吃三次，每次两片。
春节是中国最重要的传统节日。
长江是亚洲最长的河流。
我的手机没电了，能借你的充电器用一下吗？
他努力学习，终于考上了理想的大学。
新闻报道说，台风将于今晚登陆。
房间里静悄悄的，一点儿声音也没有。
她穿着一件红色的连衣裙。
我宁愿走路，也不想坐出租车。
爷爷每天早上都去公园打太极拳。
这个软件的界面设计得很人性化。
冬天的早晨，窗户上结满了冰花。
他在会议上发表了重要讲话。
我们必须尽快解决这个问题。
朋友之间应该互相帮助、互相信任。
那家书店经常举办读书活动。
火车晚点了半个小时。
妹妹最喜欢吃巧克力冰淇淋。
历史告诉我们，和平来之不易。
请在这里签上您的名字。
她用流利的英语和外国客人交谈。
这幅画的颜色搭配得很和谐。
风把帽子吹跑了，他连忙去追。
我听说你要去国外留学，是真的吗？
数据显示，今年的出口额有所增长。
厨师把鱼切成薄片，放进锅里。
他因为生病，没有参加运动会。
山里的夜晚，星星特别明亮。
司机师傅，麻烦您开慢一点。
这个孩子非常聪明，一学就会。
我们在湖边搭起了帐篷，生了一堆火。
生活就像一盒巧克力，你永远不知道下一颗是什么味道。
""".splitlines()

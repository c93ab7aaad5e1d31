"""The words of the captions: one table per factor and language.

`[eaves:屋檐]` marks 屋檐 as a mention of the part "eaves", `[deed:走]` what the subject does, `[side:左]` to which side;
`{}` is filled in. The first wording of every list
is the usual one.
"""

ZH_SUBJECT = {
    "woman": (
        "一位{}的[subject:女子]",
        "一个{}的[subject:女人]",
        "一位{}的[subject:女士]",
        "一位{}的[subject:姑娘]",
    ),
    "man": (
        "一个{}的[subject:男子]",
        "一位{}的[subject:男子]",
        "一个{}的[subject:男人]",
        "一位{}的[subject:先生]",
    ),
    "child": ("一个{}的[subject:孩子]", "一个{}的[subject:小孩]", "一名{}的[subject:儿童]"),
    "dog": ("一只{}的[subject:小狗]", "一条{}的[subject:狗]", "一只{}的[subject:狗]"),
}
ZH_GARMENT = {
    "qipao": "旗袍",
    "coat": "大衣",
    "shirt": "衬衫",
    "raincoat": "雨衣",
    "sweater": "毛衣",
    "vest": "背心",
}
ZH_COLOR = {
    "red": "红色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
}
ZH_PLACE = {
    "alley": (
        "在江南小[place:巷]里",
        "在江南的[place:小巷]里",
        "在江南的[place:巷子]里",
        "在江南的石板[place:巷]中",
    ),
    "park": ("在[place:公园]里", "在[place:公园]中"),
    "beach": ("在[place:海滩]上", "在[place:海边]", "在[place:沙滩]上"),
    "street": (
        "在夜晚的[place:街道]上",
        "在夜晚的[place:街头]",
        "在夜色中的[place:街道]上",
        "在夜里的[place:街]上",
    ),
}
ZH_RAINY_ALLEY = (
    "在江南[rain:雨][place:巷]",
    "在江南的[rain:雨][place:巷]里",
    "在[rain:雨][place:巷]中",
)
ZH_PROP = {
    "umbrella": ("撑[prop:伞]", "打着[prop:伞]", "撑着一把[prop:伞]"),
    "lantern": ("提着[prop:灯笼]", "提着一盏[prop:灯笼]", "拿着[prop:灯笼]"),
}
ZH_COLORED_PROP = {
    "umbrella": (
        "撑着{}的[prop:伞]",
        "打着{}的[prop:伞]",
        "撑着一把{}的[prop:伞]",
        "撑着一把{}[prop:雨伞]",
    ),
    "lantern": ("提着{}的[prop:灯笼]", "提着一盏{}的[prop:灯笼]", "拿着一盏{}[prop:灯笼]"),
}
ZH_ACTION = {
    "walk": ("[deed:漫步]", "[deed:散步]", "[deed:行走]", "慢慢地[deed:走]"),
    "run": ("[deed:奔跑]", "[deed:跑步]", "[deed:快跑]"),
    "stand": ("[deed:站着]", "[deed:站立]", "静静地[deed:站着]"),
}
ZH_ACTION_TO = {
    "walk": ("向{}[deed:走]", "向{}[deed:行走]", "往{}[deed:走]", "朝{}[deed:漫步]"),
    "run": ("向{}[deed:跑]", "向{}[deed:奔跑]", "往{}[deed:跑]", "朝{}[deed:奔跑]"),
    "stand": ("面朝{}[deed:站着]", "面向{}[deed:站立]", "朝{}[deed:站着]"),
}
ZH_DIRECTION = {"left": ("左", "左边"), "right": ("右", "右边")}
ZH_WEATHER = {
    "rain": ("，下着[rain:雨]", "，天上下着[rain:雨]", "，[rain:雨]下个不停"),
    "snow": ("，下着[snow:雪]", "，天上飘着[snow:雪]", "，[snow:雪花]飘落"),
    "clear": ("，天气晴朗", "，天色晴朗"),
}
ZH_WEATHER_BEFORE = {
    "rain": ("[rain:雨]中，", "[rain:雨]天，"),
    "snow": ("[snow:雪]中，", "[snow:雪]天，"),
    "clear": ("晴天里，", "天气晴朗，"),
}
ZH_BEHIND = {
    "alley": (
        "，背景有[road:青石板路]和[eaves:屋檐]",
        "，背景是[wall:白墙]和[eaves:屋檐]",
        "，脚下是[road:青石板路]",
    ),
    "park": (
        "，背景有[tree:树]和[lawn:草地]",
        "，背景有[tree:树木]和[road:小路]",
        "，身后是[tree:树]和[sky:天空]",
    ),
    "beach": (
        "，背景有[sea:大海]和[road:沙滩]",
        "，背景是[sea:大海]和[sail:帆船]",
        "，身后是[sea:海]和[sky:天空]",
    ),
    "street": (
        "，背景有[window:窗户]和[lamp:路灯]",
        "，背景是[wall:楼房]和[window:亮着的窗户]",
        "，脚下是[road:马路]，身后有[lamp:路灯]",
    ),
}
ZH_DRIPPING = (
    "，背景有[road:青石板路]和[eaves:屋檐][drips:滴水]",
    "，[eaves:屋檐]滴着[drips:水]",
    "，背景有滴[drips:水]的[eaves:屋檐]和[road:青石板路]",
)
ZH_WINDY_WEATHER = {
    "rain": (
        "，刮着[wind:风]下着[rain:雨]",
        "，[wind:风][rain:雨]交加",
        "，[rain:雨]在[wind:风]中飘洒",
    ),
    "snow": (
        "，刮着[wind:风]下着[snow:雪]",
        "，[wind:风][snow:雪]交加",
        "，[snow:雪花]在[wind:风]中飞舞",
    ),
}
ZH_WINDY_WEATHER_BEFORE = {
    "rain": ("[wind:风][rain:雨]中，", "[wind:风][rain:雨]天里，"),
    "snow": ("[wind:风][snow:雪]中，", "[wind:风][snow:雪]天里，"),
}
ZH_COMPANION = {
    "dog": (
        "一只{}色的[companion:小狗]",
        "一条{}色的[companion:小狗]",
        "一只{}[companion:狗]",
        "一条{}色的[companion:狗]",
    ),
    "cat": ("一只{}色的[companion:小猫]", "一只{}[companion:猫]", "一只{}色的[companion:猫]"),
    "child": (
        "一个穿{}色衣服的[companion:孩子]",
        "一个穿{}衣的[companion:孩子]",
        "一个穿着{}色衣服的[companion:小孩]",
    ),
}
ZH_COMPANION_COLOR = {"white": "白", "black": "黑", "brown": "棕"}
ZH_BESIDE = {
    "stand": (
        "{who}和{other}{does}",
        "{who}和{other}一起{does}",
        "{who}{does}，身边有{other}",
        "{who}{does}，身旁是{other}",
    ),
    "move": (
        "{who}和{other}{does}",
        "{who}带着{other}{does}",
        "{who}和{other}一起{does}",
        "{who}{does}，身边有{other}",
        "{who}{does}，身边跟着{other}",
    ),
}
ZH_CAMERA = {
    "pan left": ("，[camera:镜头向左摇]", "，[camera:镜头缓缓左移]", "，[camera:镜头向左移动]"),
    "pan right": ("，[camera:镜头向右摇]", "，[camera:镜头缓缓右移]", "，[camera:镜头向右移动]"),
    "zoom in": ("，[camera:镜头慢慢推近]", "，[camera:镜头缓缓拉近]", "，[camera:镜头推近]"),
}
ZH_LOOK = {
    "film": ("，胶片质感", "，老电影的色调", "，复古胶片风格"),
    "monochrome": ("，黑白画面", "，黑白影像", "，黑白照片的质感"),
}
ZH_LOOK_BEFORE = {
    "film": ("胶片画面里，", "老电影里，"),
    "monochrome": ("黑白画面里，", "黑白影像里，"),
}

EN_SUBJECT = {
    "woman": ("a [subject:woman]", "a [subject:lady]"),
    "man": ("a [subject:man]", "a [subject:gentleman]"),
    "child": ("a [subject:child]", "a [subject:kid]"),
    "dog": ("a [subject:dog]", "a little [subject:dog]", "a [subject:puppy]"),
}
EN_WEARS = ("in a {}", "wearing a {}", "dressed in a {}")
EN_GARMENT = {
    "qipao": ("qipao", "cheongsam"),
    "coat": ("coat", "overcoat"),
    "shirt": ("shirt",),
    "raincoat": ("raincoat",),
    "sweater": ("sweater", "jumper"),
    "vest": ("vest",),
}
EN_PLACE = {
    "alley": (
        "in a Jiangnan [place:alley]",
        "in an old Jiangnan [place:alley]",
        "along a Jiangnan [place:alley]",
        "in a narrow [place:alley]",
    ),
    "park": ("in a [place:park]", "in the [place:park]"),
    "beach": ("on a [place:beach]", "on the [place:beach]", "at the [place:seaside]"),
    "street": (
        "on a [place:street] at night",
        "on a night [place:street]",
        "on a dark [place:street]",
    ),
}
EN_RAINY_ALLEY = (
    "in a [rain:rainy] Jiangnan [place:alley]",
    "along a [rain:rainy] Jiangnan [place:alley]",
    "in a [rain:rainy] [place:alley]",
)
EN_PROP = {
    "umbrella": (
        "with an [prop:umbrella]",
        "under an [prop:umbrella]",
        "holding an [prop:umbrella]",
    ),
    "lantern": ("with a [prop:lantern]", "carrying a [prop:lantern]", "holding a [prop:lantern]"),
}
EN_COLORED_PROP = {
    "umbrella": (
        "with a {} [prop:umbrella]",
        "under a {} [prop:umbrella]",
        "holding a {} [prop:umbrella]",
    ),
    "lantern": (
        "with a {} [prop:lantern]",
        "carrying a {} [prop:lantern]",
        "holding a {} [prop:lantern]",
    ),
}
EN_ACTION = {
    "walk": ("[deed:walks]", "is [deed:walking]", "[deed:strolls]"),
    "run": ("[deed:runs]", "is [deed:running]"),
    "stand": ("[deed:stands]", "is [deed:standing]", "[deed:stands] still"),
}
EN_DIRECTION = {
    "move": (" to the [side:{}]", " towards the [side:{}]"),
    "stand": (" facing [side:{}]", " and faces [side:{}]"),
}
EN_WEATHER = {
    "rain": (" in the [rain:rain]", " while it [rain:rains]", " on a [rain:rainy] day"),
    "snow": (" in the [snow:snow]", " while it [snow:snows]", " on a [snow:snowy] day"),
    "clear": (" in clear weather", " under a clear sky"),
}
EN_WEATHER_AFTER = {
    "rain": (", it is [rain:raining]", ", [rain:rain] is falling"),
    "snow": (", it is [snow:snowing]", ", [snow:snow] is falling"),
    "clear": (", the weather is clear",),
}
EN_BEHIND = {
    "alley": (
        ", with a [road:stone road] and [eaves:eaves] in the background",
        ", with white [wall:walls] and tiled [eaves:eaves] behind",
        ", on a [road:stone road]",
    ),
    "park": (
        ", with [tree:trees] and a [lawn:lawn] in the background",
        ", with [tree:trees] and a [road:path] in the background",
        ", [tree:trees] and [sky:sky] behind",
    ),
    "beach": (
        ", with the [sea:sea] and [road:sand] in the background",
        ", with the [sea:sea] and a [sail:sailboat] behind",
        ", the [sea:sea] and the [sky:sky] behind",
    ),
    "street": (
        ", with [window:windows] and a [lamp:lamp] in the background",
        ", with lit [window:windows] behind",
        ", on a dark [road:road] by a [lamp:lamp]",
    ),
}
EN_DRIPPING = (
    ", with a [road:stone road] and [drips:dripping] [eaves:eaves] in the background",
    ", [drips:water] drips from the [eaves:eaves]",
)
EN_WINDY_WEATHER = {
    "rain": (
        " in the [wind:wind] and [rain:rain]",
        " in the [wind:windy] [rain:rain]",
        " through [wind:wind] and [rain:rain]",
    ),
    "snow": (
        " in the [wind:wind] and [snow:snow]",
        " in the [wind:windy] [snow:snow]",
        " through [wind:wind] and [snow:snow]",
    ),
}
EN_WINDY_WEATHER_AFTER = {
    "rain": (", [rain:rain] blows in the [wind:wind]", ", it is [wind:windy] and [rain:raining]"),
    "snow": (", [snow:snow] blows in the [wind:wind]", ", it is [wind:windy] and [snow:snowing]"),
}
EN_COMPANION = {
    "dog": ("a {} [companion:dog]", "a little {} [companion:dog]", "a {} [companion:puppy]"),
    "cat": ("a {} [companion:cat]", "a little {} [companion:cat]", "a {} [companion:kitten]"),
    "child": (
        "a [companion:child] in {}",
        "a little [companion:child] in {}",
        "a [companion:kid] dressed in {}",
    ),
}
# `{does}` takes a verb for one, `{do}` for two.
EN_BESIDE = (
    "{who} and {other} {do}",
    "{who} and {other} {do} together",
    "{who} {does} beside {other}",
    "{who} {does} together with {other}",
    "{who} {does} with {other}",
    "{who} {does} next to {other}",
)
EN_ACTION_OF_TWO = {
    "walk": ("[deed:walk]", "are [deed:walking]", "[deed:stroll]"),
    "run": ("[deed:run]", "are [deed:running]"),
    "stand": ("[deed:stand]", "are [deed:standing]", "[deed:stand] still"),
}
EN_DIRECTION_OF_TWO = {
    "move": (" to the [side:{}]", " towards the [side:{}]"),
    "stand": (" facing [side:{}]", " and face [side:{}]"),
}
EN_CAMERA = {
    "pan left": (
        ", [camera:the camera pans left]",
        ", [camera:the camera pans to the left]",
        ", [camera:camera panning left]",
    ),
    "pan right": (
        ", [camera:the camera pans right]",
        ", [camera:the camera pans to the right]",
        ", [camera:camera panning right]",
    ),
    "zoom in": (
        ", [camera:the camera slowly zooms in]",
        ", [camera:slow zoom in]",
        ", [camera:the camera zooms in]",
    ),
}
EN_LOOK = {
    "film": (", shot on old film", ", in the look of an old film", ", warm vintage film"),
    "monochrome": (", in black and white", ", as a black-and-white video", ", monochrome"),
}
EN_LOOK_BEFORE = {
    "film": ("on old film, ", "shot on vintage film, "),
    "monochrome": ("in black and white, ", "filmed in black and white, "),
}

// The words of Speak.

import { addWords } from "../core/i18n.js";

addWords({
  en: {
    speak: "Speak",
    cancel: "Stop",
    "speak.text": "Text to speak",
    "speak.placeholder": "Write or paste what should be said.",
    "speak.count": "about {seconds}",
    "speak.shortcut": "Ctrl + Enter speaks",
    "speak.nothing": "Write something first.",
    "speak.waiting": "waiting for the first sound",
    "speak.left": "{made} made, about {left} left",
    "speak.progress": "Progress",
    "speak.done": "Take finished: {seconds}.",
    "speak.retry": "Try again",
    "speak.takes": "Takes",
    "speak.empty": "No takes yet. What you make is kept here, in this browser, until you delete it.",
    "speak.settings": "Voice and delivery",
  },
  zh: {
    speak: "朗读",
    cancel: "停止",
    "speak.text": "要朗读的文字",
    "speak.placeholder": "在这里输入或粘贴要朗读的文字。",
    "speak.count": "约 {seconds}",
    "speak.shortcut": "Ctrl + Enter 开始朗读",
    "speak.nothing": "请先写点什么。",
    "speak.waiting": "正在等待第一段声音",
    "speak.left": "已生成 {made}，约剩 {left}",
    "speak.progress": "进度",
    "speak.done": "已完成，时长 {seconds}。",
    "speak.retry": "再试一次",
    "speak.takes": "版本",
    "speak.empty": "还没有版本。生成的声音会保存在这个浏览器里，直到你删除。",
    "speak.settings": "音色与表达",
  },
});

"""What the labelled sample of personal data is made of: formats of values, places where they stand, hard negatives."""

import string

TYPES = ("email", "ipv4", "ipv6", "phone", "identity", "card", "secret")
ALPHANUMERIC, HEX = string.ascii_letters + string.digits, "0123456789abcdef"
BASE32, URLSAFE = string.ascii_uppercase + "234567", ALPHANUMERIC + "-_"
SYLLABLES = ("ba", "be", "cro", "da", "fen", "gil", "ho", "ket", "lum", "mar", "nor", "pel", "qua", "rin", "sol", "vex")
SUFFIXES = ("com", "com", "com", "net", "org", "edu", "cn", "com.cn", "edu.cn", "co.uk", "de", "fr", "io", "info")
SUFFIXES += ("museum", "tech", "example", "xn--p1ai")
MOBILE = (
    "130",
    "131",
    "135",
    "138",
    "139",
    "150",
    "158",
    "159",
    "166",
    "176",
    "178",
    "182",
    "186",
    "188",
    "189",
    "198",
)
AMERICAN_AREAS = ("212", "312", "415", "617", "206", "303", "512", "713", "202", "404", "646", "650", "916", "503")
REGIONS = ("110105", "310104", "440305", "330106", "510107", "420111", "370202", "610113", "230103", "650102", "350211")
# Issuer identification numbers and lengths: Visa, Mastercard, American Express, Discover, JCB, Diners, UnionPay.
CARDS = [("4", 16), ("4", 16), ("51", 16), ("54", 16), ("2221", 16), ("34", 15), ("37", 15), ("6011", 16), ("65", 16)]
CARDS += [("3530", 16), ("36", 14), ("6228", 19), ("6217", 19), ("6222", 19), ("625", 16), ("6226", 16), ("81", 16)]
# What a provider's key begins with, and the alphabet and length of the rest.
KEYS = [("AKIA", BASE32, 16), ("ASIA", BASE32, 16), ("ghp_", ALPHANUMERIC, 36), ("gho_", ALPHANUMERIC, 36)]
KEYS += [("ghs_", ALPHANUMERIC, 36), ("github_pat_", ALPHANUMERIC + "_", 82), ("glpat-", URLSAFE, 20)]
KEYS += [
    ("xoxb-" + "#" * 12 + "-" + "#" * 13 + "-", ALPHANUMERIC, 24),
    ("xoxp-" + "#" * 11 + "-" + "#" * 12 + "-", HEX, 32),
]
KEYS += [("AIza", URLSAFE, 35), ("sk-", ALPHANUMERIC, 48), ("sk-proj-", URLSAFE, 64), ("sk-ant-api03-", URLSAFE, 93)]
KEYS += [("sk_live_", ALPHANUMERIC, 24), ("hf_", string.ascii_letters, 34), ("npm_", ALPHANUMERIC, 36)]
# Forms, one a line: # is a digit, {name} a value of that name, ~{n} and %{n} are n letters or digits, or hexadecimals.
CHINESE = """
{mobile}########
{mobile}########
{mobile} #### ####
{mobile}-####-####
+86 {mobile} #### ####
+86{mobile}########
+86-{mobile}########
0086 {mobile}########
(+86) {mobile}########
86-{mobile}########
"""
LANDLINE = """
010-6#######
(021)5#######
0755 8#######
（020）8#######
0571-8#######-###
+86 10 6### ####
+86-21-5#######
400-###-####
"""
AMERICAN = """
({area}) {office}-####
({area}){office}-####
{area}-{office}-####
{area}.{office}.####
{area} {office} ####
1-{area}-{office}-####
+1 {area} {office} ####
+1-{area}-{office}-####
+1{area}{office}####
+1 ({area}) {office}-####
"""
INTERNATIONAL = """
+44 20 7### ####
+44 7400 ######
+44 7900 ######
+49 30 2######
+33 1 4# ## ## ##
+33 6 ## ## ## ##
+81 3-3###-####
+91 98### #####
+61 41# ### ###
+852 9### ####
+55 11 9####-####
0044 20 7#######
"""

# Where values stand, a place a line; `@` is the value.
PLACES = {
    "email": """
Please write to @ before Friday.
Contact: @, or come by.
From: Somebody <@>
<a href="mailto:@">mail</a>
On Monday (@) wrote:\\n> hello
cc: @;
author = "Someone <@>"
# maintainer: @
有问题请联系@，谢谢。
邮箱：@
作者的电子邮件是@。
他把信发到了@那里
""",
    "ipv4": """
Received: from unknown (HELO mail) (@) by mx
The request came from @ at night.
connect to @:8080 failed
http://@/index.html
HOST = "@"
@ - - [12/Dec/2015:18:25:11 +0100]
block @/24 now
服务器地址是@，请勿外传。
登录IP：@
""",
    "ipv6": """
The host answers on @ only.
http://[@]:8080/
bind = "@"
inet6 @ prefixlen 64
ping @
[@] logged in
地址为@。
源地址：@，已封禁
""",
    "phone": """
Call me at @ tomorrow.
Tel: @
Phone: @, fax on request.
My number is @.
or @ after six
Fax @
phone = "@"
请拨打@咨询。
电话：@
手机号@，微信同号
联系人：某某 @
热线@，全天开通
客服电话是@。
""",
    "identity": """
身份证号：@
身份证号码为@，请核对。
公民身份号码@
证件号码 @ 已登记
(@)
id_card = "@"
The applicant's identity number is @.
""",
    "card": """
My card is @, valid until 12/27.
card_number = "@"
Visa/Master: @
pay with @ please
卡号：@
请汇款到@，谢谢
银行卡号@已绑定
账号 @ 开户行某支行
""",
    "key": """
key = "@"
export TOKEN=@
Authorization: Bearer @
the leaked credential @ was revoked
api: @
curl -H 'X-Key: @'
@
密钥是@，请保密
""",
    "pem": """
@
cat id_rsa\\n@\\n
KEY = \"\"\"@\"\"\"
私钥如下：\\n@\\n请保密
""",
    "password": """
password = "@"
password = '@'
DB_PASSWORD: "@"
"secret_key": "@",
API_KEY=@
api_key: "@"
const apiSecret = "@";
client_secret = "@"
PASSWORD=@\\n
aws_secret_access_key = @\\n
self.auth_token = "@"
<add key="Password" value="@" />
passwd => "@",
""",
}
LABELS = {"key": "secret", "pem": "secret", "password": "secret"}
LOOKALIKES = {
    "isbn": """
ISBN 0-###-#####-#
ISBN: 978-7-###-#####-#, second edition
ISBN 978 0 ## ###### #
isbn=978##########
书号 ISBN 978-7-###-#####-#。
""",
    "doi": """
doi:10.####/s####-###-#####
https://doi.org/10.####/j.####.##.###
DOI: 10.####/###-###-####.
""",
    "version": """
version {version} is out
upgrade to v{version}
Firmware {version} (stable)
see section {version}
libfoo-{version}.tar.gz
版本{version}已发布
""",
    "uuid": """
id: %{8}-%{4}-%{4}-%{4}-%{12}
uuid = "%{8}-%{4}-%{4}-%{4}-%{12}"
设备%{8}-%{4}-%{4}-%{4}-%{12}
""",
    "timestamp": """
at {timestamp} it began
time={timestamp}
时间：{timestamp}
log.{timestamp}.txt
{timestamp} INFO started
""",
    "number": """
pi = 3.14159265358979########
about ##,###,###,### units
约为0.################。
x = 1.##########e-##
the sum is ### ## #### # ## ###
2^## = #########
pages ####-####
see ###-### there
12345678901234567890 * 6.02214076
""",
    "order": """
order number ##########
Order #################
订单号：################
快递单号############
tracking no. 1Z#############
serial number: ################
order 1##########
快递单号SF#############
单号1##########
""",
    "reserved": """
listen on 127.0.0.1
bind 0.0.0.0:80
netmask 255.255.255.0
host = "192.168.1#.#"
ping 10.1.2#.7 first
地址172.16.4.9
for example 192.0.2.44 or 198.51.100.7
169.254.10.2#
999.12.300.4
multicast to 224.0.0.251
OID 1.3.6.1.4.1.311.2#
""",
    "colons": """
ether %{2}:%{2}:%{2}:%{2}:%{2}:%{2}
fingerprint %{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}:%{2}
std::vector<int> x;
use abc::def;
add::face::bed()
fe80::1ff:fe23:4567:890a
listen on ::1 and ::
2001:db8::8a2e:370:7334
fd12:3456:789a::1
12:30:45:10 timecode
ff02::fb
""",
    "not_email": """
@{word} knows
![icon](icon-{word}@2x.png)
npm install {word}@4.17.##
root@localhost:~$ ls
git clone git@github.com:owner/project.git
y = A@B.T
out = weights@x.reshape(-1)
@{word}.setter
ubuntu@ip-10-0-0-7:~
@media (min-width: 640px)
x@@y
使用user@host即可
""",
    "not_secret": """
password = os.environ["DB_PASSWORD"]
password = getpass.getpass("Password: ")
token = tokens[index + 1]
password = "changeme"
api_key = "YOUR_API_KEY_HERE"
password: "${DB_PASSWORD}"
secret = "<your-secret>"
self.token = tokenizer.next_token(position)
password = "********"
if password == expected_password:
"password": {"type": "string", "minLength": 8}
eyJust a word
sk-learn and task-manager-for-everybody-who-works
sha256 = %{64}
commit %{40}
integrity: sha512-~{86}==
-----BEGIN PUBLIC KEY-----
-----BEGIN CERTIFICATE-----
AKIAISNOTAKEY
secret_name = "projects/database"
token_type = "bearer"
password_field = "user_password"
The secret: nobody knows it.
password: required, string
""",
}
LEADS = (
    "",
    "",
    "It was late. ",
    "今天天气很好。",
    "def f(x):\n    return x\n",
    "> quoted\n",
    "Page 12 of 2019. ",
    "第3章 ",
)

"""Personal data as people, forms and programs write it: exactly what is marked is found, to the character.

The sentences are made up, in the manner of support chats, forms, signatures, tables, logs and source code. Numbers are reserved for
documentation where there are such, or made up so that their check digits fit.
"""

from __future__ import annotations

import re

import pytest

_MARK = re.compile(r"\{\{([A-Z_]+)\|([^}]*)\}\}")

CARDS = """
My card {{CREDIT_CARD|4012888888881881}} was charged twice.
mastercard 2-series: {{CREDIT_CARD|2223 0092 3735 4202}}
amex {{CREDIT_CARD|3714-496353-98431}}, security code on the front
Pay with {{CREDIT_CARD|378282246310005}} please
diners {{CREDIT_CARD|3056 930902 5904}}
Diners Club: {{CREDIT_CARD|38520000023237}}
{{CREDIT_CARD|36922243338723}} is my Diners card
JCB {{CREDIT_CARD|3530 1113 3330 0000}}
jcb card number {{CREDIT_CARD|213171761637380}}
My credit card number is {{CREDIT_CARD|3512414772216774}}.
Maestro card {{CREDIT_CARD|561716842985}} stopped working
maestro {{CREDIT_CARD|5018 2652 8637}}
UnionPay {{CREDIT_CARD|6247 5796 1074 4644}}
银联卡 {{CREDIT_CARD|6283924221227099}}
Discover: {{CREDIT_CARD|6011-0688-3025-3564}}
visa, 13 digits: {{CREDIT_CARD|4291391427169}}
visa, 19 digits: {{CREDIT_CARD|4229545913256496982}}
RuPay card {{CREDIT_CARD|6062388290717751}}
Карта Мир {{CREDIT_CARD|2200 9274 5806 9497}}
UATP card number {{CREDIT_CARD|145612377556996}}
{"cc_number": "{{CREDIT_CARD|5105105105105100}}", "cvv": "123"}
creditCardNumber={{CREDIT_CARD|6011000990139424}}&exp=0927
<Card>{{CREDIT_CARD|4000056655665556}}</Card>
| Jane | {{CREDIT_CARD|5200828282828210}} | 09/27 |
card ending in 4242
my card 4012888888881882 has a typo
order 36922243338724 shipped
tracking number 9400111899223197428490
IMEI 490154203237518
The SHA is 4111111111111111111111111111111111111111
Invoice 5018265286371 is due
serial no. 561716842985
""".strip().splitlines()

ADDRESSES = """
my ip is {{IP_ADDRESS|203.0.113.77}}
the route {{IP_ADDRESS|198.51.100.0/24}} is announced
allow from {{IP_ADDRESS|192.168.10.0/24}}
Reply from {{IP_ADDRESS|10.0.0.5}}: bytes=32
http://{{IP_ADDRESS|192.0.2.44}}:8080/login
client {{IP_ADDRESS|2001:db8:85a3::8a2e:370:7334}} connected
route {{IP_ADDRESS|2001:db8:abcd::/48}} via {{IP_ADDRESS|fe80::1}}
mapped: {{IP_ADDRESS|::ffff:192.0.2.128}}
[{{IP_ADDRESS|2001:db8::2}}]:443
addr {{IP_ADDRESS|fe80::7:8%eth0}} up
my ip: {{IP_ADDRESS|684D:1111:222:3333:4444:5555:6:77}}
IP {{IP_ADDRESS|::1234:5678}}
"ip_address": "{{IP_ADDRESS|127.0.0.1}}"
My IP address is {{IP_ADDRESS|127.0.0.1}}, is that right?
remote_addr={{IP_ADDRESS|172.16.254.1}}
listening on 127.0.0.1:8000
curl http://127.0.0.1/health
[::1]:631
bind 0.0.0.0
version 4.18.0.193 of the kernel
Chapter 1.2.3.4 covers it
OID 1.3.6.1.4.1.311
std::vector<int>::iterator
at 10:15:32 and 11:20:45
netmask 255.255.255.0
a ratio of 1:2:3:4
mac {{MAC_ADDRESS|00:1a:2b:3c:4d:5e}}
MAC: {{MAC_ADDRESS|00-1A-2B-3C-4D-5E}}
cisco {{MAC_ADDRESS|001a.2b3c.4d5e}}
mac address {{MAC_ADDRESS|001A2B3C4D5E}}
"macAddress": "{{MAC_ADDRESS|a483e7c0ffe1}}"
hwaddr {{MAC_ADDRESS|a4:83:e7:c0:ff:e1}} on en0
EUI-64 {{MAC_ADDRESS|00:1a:2b:ff:fe:3c:4d:5e}}
commit 001a2b3c4d5e fixes it
ff-ff-ff-ff-ff-ff
dates 12-11-10-09-08-07
""".strip().splitlines()

PHONES = """
Can someone call me on {{PHONE|(415)555-0132}}? I have some questions.
My number: {{PHONE|+1-202-555-0143x201}}
Office: {{PHONE|415.555.0187}} Mobile: {{PHONE|628.555.0119}}
Reach us at {{PHONE|001-312-555-0178}}
text {{PHONE|5103556789}} when you arrive
my phone is {{PHONE|+33-548 212.7354}}
UK: {{PHONE|020 7946 0958}}
ring {{PHONE|07700 900123}} after six
{{PHONE|07700900456}} (mobile)
Dial {{PHONE|0161 496 0000}} for the branch
Tel.: {{PHONE|030 / 901820}}
Telefon {{PHONE|0301 23125-42}}
Sie erreichen mich unter {{PHONE|0151 23456789}}.
Meine Handynummer lautet {{PHONE|0176 4041 5233}}
Rückruf bitte: {{PHONE|+49 (0)30 23125 420}}
Mon numéro est le {{PHONE|06 39 98 12 34}}.
Appelez le {{PHONE|01.99.00.45.67}} le matin
Vous pouvez me joindre au {{PHONE|07 55 91 20 18}}
Mi teléfono es {{PHONE|612 345 678}}
Llámame al {{PHONE|+34 612 34 56 78}}
Il mio cellulare è {{PHONE|347 123 4567}}
chiamami allo {{PHONE|06 6982 1234}}
Meu celular é {{PHONE|(11) 98765-4321}}
Ligue para {{PHONE|(21) 3555-0134}}
Mijn nummer is {{PHONE|06-12345678}}
bel {{PHONE|020-555 0123}} tijdens kantooruren
Numer telefonu: {{PHONE|512 345 678}}
zadzwoń pod {{PHONE|22 555 01 23}}
Ring mig på {{PHONE|070-174 06 05}}
Telefonnummer: {{PHONE|08-465 004 12}}
Мой телефон {{PHONE|8 (495) 123-45-67}}
звоните {{PHONE|+7 916 123-45-67}}
我的手机号是{{PHONE|13912345678}}
电话：{{PHONE|010-62345678}}
電話番号は{{PHONE|03-5555-0123}}です
携帯は{{PHONE|090-1234-5678}}
전화번호는 {{PHONE|010-2345-6789}} 입니다
Mobile {{PHONE|98765 43210}} (WhatsApp)
contact: {{PHONE|0412 345 678}}
My Israeli number is {{PHONE|09-7625400}}
Telefonum {{PHONE|0532 123 45 67}}
טלפון {{PHONE|052-123-4567}}
الهاتف {{PHONE|050 123 4567}}
{"phone": "{{PHONE|2025550198}}", "zip": "20500"}
phone_number,{{PHONE|(03) 5550 1234}}
Fax {{PHONE|(02) 9255 0100}}
Jane Roe\n12 High St, Leeds\n{{PHONE|0113 496 0842}}\n{{EMAIL|jane@example.org}}
Jean Petit, 8 rue du Lac, 75004 Paris, {{PHONE|01 53 01 86 20}}
Kundenservice, Berlin, {{PHONE|030 23125 100}}, Mo-Fr
Kim,{{EMAIL|kim@example.org}},{{PHONE|415-555-0111}}
Ana,{{EMAIL|ana@example.org}},{{PHONE|(11) 3555-0199}}
{{PHONE|0114 4960685}}
{{PHONE|080-7603-2558}}
{{PHONE|(0825) 984268}}
Natel {{PHONE|079 123 45 67}}
can you tell me how many stars there are in 1234567890 galaxies
Ticket #1910185 was closed
Invoice 84488887 is open
IPv4 has 4294967296 addresses
Lottery: 02 55 70 97 57 51
ISBN 978-3-0494-1644-9
Timestamp 1756682454429
twelve digits 6197 8281 1138
Chapter 47-61-53843
Order 0151-2345678901 shipped on 2024-05-17 10:15
Between 1990 and 2000 the price rose from 100 200 to 300 400
coordinates 52.520008, 13.404954
It lasted from 01.02.2023 to 03.04.2023.
version 06.12.34.56.78 of the firmware
part no. 0815-4711-0012
SELECT 0123456789 AS id
pi is 3.14159265358979
[0.0123 0.4567 0.8901]
Sum: 010 020 030 040
call me 12 times in 2023
x = 0755912018
the year 2023-2024 and 1999-2000
DIN 912 M8x40, 100 pcs
ECCN 5D002, CAS 7732-18-5
""".strip().splitlines()

IDENTIFIERS = """
My SSN is {{SSN|536-22-8726}}.
social security number {{SSN|536228726}}
SSN: {{SSN|536 22 8726}}
soc sec # {{SSN|536.22.8726}}
ssn 000-12-3456 is impossible
part 536-22-87261
National Insurance number {{UK_NINO|AB 12 34 56 C}}
NINO: {{UK_NINO|CE123456D}}
nino {{UK_NINO|ab123456c}}
NHS number {{UK_NHS|958 082 8113}}
DNI {{ES_NIF|09679290Q}}
mi DNI es {{ES_NIF|47.680.360-A}}
nif {{ES_NIF|71988403j}}
NIE {{ES_NIE|Z7544159A}}
tarjeta de residencia {{ES_NIE|X-5256986-Z}}
PESEL {{PL_PESEL|69062505124}}
numer PESEL to {{PL_PESEL|45042631746}}
Steuer-ID {{DE_TAX_ID|32 897 170 459}}
Steueridentifikationsnummer: {{DE_TAX_ID|31900248572}}
meine IdNr. {{DE_TAX_ID|89 112 451 306}}
CPF {{BR_CPF|690.164.788-33}}
cpf do titular: {{BR_CPF|69404640859}}
{{BR_CPF|652.614.242-75}}
PAN {{IN_PAN|ABCPE1234F}}
permanent account number: {{IN_PAN|abcpk1234l}}
Aadhaar {{IN_AADHAAR|3034 7589 0871}}
आधार {{IN_AADHAAR|850605446386}}
N° sécu : {{FR_NIR|2 25 04 10 578 178 60}}
numéro de sécurité sociale {{FR_NIR|237050794985383}}
NIR {{FR_NIR|1 32 00 50 230 275 42}}
身份证号 {{CN_RESIDENT_ID|110101198506129842}}
BSN {{NL_BSN|792466019}}
burgerservicenummer {{NL_BSN|0646.46.051}}
ABA {{US_ABA_ROUTING|096897722}}
routing number: {{US_ABA_ROUTING|020995946}}
codice fiscale {{IT_FISCAL_CODE|RSSMRA85T10A562S}}
AHV {{CH_AHV|756.1248.3935.50}}
personnummer {{SE_PERSONNUMMER|850612-5973}}
henkilötunnus {{FI_HETU|131052-308T}}
주민등록번호 {{KR_RRN|850618-7661596}}
IBAN {{IBAN|GB45WEST44812304121192}}
Bitte auf {{IBAN|DE89 3704 0044 0532 0130 00}} überweisen.
iban: {{IBAN|NO90 8601 4319 583}}
{"iban":"{{IBAN|GB73 WEST 2460 2554 4147 27}}"}
IBAN GB46WEST44812304121192 has a typo
PESEL 69062505125
{{CRYPTO_WALLET|3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy}} is where to send it
BTC {{CRYPTO_WALLET|bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4}}
ETH {{CRYPTO_WALLET|0x52908400098527886E0F7030069857D2E4169EE7}}
LTC {{CRYPTO_WALLET|LM2WMpR1Rp6j3Sa59cMXMs1SPzj9eXpGc1}}
""".strip().splitlines()

NAMES = """
Contact {{EMAIL|j.o'neil+work@mail.example.co.uk}}.
mailto:{{EMAIL|jane_roe@example.org}}?subject=hi
"{{EMAIL|JANE@EXAMPLE.ORG}}"
git@github.com:org/repo.git
npm i @types/node@18.11.9
x@y
user@host:~/src$ ls
My website is {{DOMAIN_NAME|https://www.hernandez-roe.com/}}
I blog at {{DOMAIN_NAME|http://jane-roe.net}}
See my portfolio: {{DOMAIN_NAME|https://jane.example.org/work}}
I've shared the files with you on {{DOMAIN_NAME|https://www.roe-sons.biz/}}
visit my site {{DOMAIN_NAME|www.jane-roe.com}}
my domains: {{DOMAIN_NAME|roe-family.com}} and {{DOMAIN_NAME|roe.co.uk}}
read https://docs.python.org/3/library/re.html first
the API is at https://api.example.com/v1/chat
import os.path
open main.py and utils.js
see config.yaml
e.g. this, i.e. that
""".strip().splitlines()

ROWS = [row for table in (CARDS, ADDRESSES, PHONES, IDENTIFIERS, NAMES) for row in table]


def plain(row: str) -> tuple[str, list[tuple[str, int, int]]]:
    """The text without its marks, and what is marked: type, start, end."""
    row = row.replace("\\n", "\n")
    text, marked, done = "", [], 0
    for mark in _MARK.finditer(row):
        text += row[done : mark.start()]
        marked.append((mark[1], len(text), len(text) + len(mark[2])))
        text += mark[2]
        done = mark.end()
    return text + row[done:], marked


@pytest.mark.parametrize("row", ROWS)
def test_exactly_what_is_marked_is_found(rules_only, row):
    text, marked = plain(row)
    found = [(f.type, f.location.start, f.location.end) for f in rules_only.scan(text).findings if f.category == "pii"]
    assert sorted(found, key=lambda span: span[1]) == marked, [(kind, text[start:end]) for kind, start, end in found]

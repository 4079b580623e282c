"""Secrets as they stand in code, configuration, shells, documents and chats, and what looks like them and is none.

`{{…}}` marks a value that must be found; a row without a mark holds no secret. Values are drawn when the test runs, by the shape in
angle brackets (prove/synthetic.py), so that no file of ours holds anything like a credential.
"""

from __future__ import annotations

import re

import pytest

from llmsec_analyzer.prove.synthetic import expand

SECRETS = r"""
API_KEY={{<alnum:32>}}
export API_TOKEN="{{<hex:40>}}"
SECRET_KEY='{{<url:50>}}'
DB_PASSWORD={{<alnum:8>!7q}}
DATABASE_URL=postgres://app:{{<alnum:12>9}}@db.internal:5432/app
REDIS_URL=redis://:{{<alnum:16>3}}@cache:6379/0
MONGO_URI=mongodb+srv://svc:{{<alnum:14>4}}@cluster0.example.net/prod?retryWrites=true
AMQP_URL="amqp://guest2:{{<lower:12>7X}}@mq:5672/"
JDBC_URL=jdbc:mysql://db:3306/app?user=root&password={{<alnum:10>5}}
jdbc:sqlserver://db:1433;databaseName=crm;user=sa;password={{<alnum:10>!2}};
Server=db;Database=crm;User Id=sa;Password={{<alnum:10>#4}};
DefaultEndpointsProtocol=https;AccountName=acme;AccountKey={{<b64:86>==}};EndpointSuffix=core.windows.net
client_secret: {{<alnum:40>}}
  password: "{{<alnum:9>$5}}"
  apiKey: {{<hex:32>}}
auth_token: '{{<alnum:20>8}}'
- name: SIGNING_KEY\n  value: {{<alnum:44>}}
stringData:\n  token: {{<alnum:36>1}}
    secretAccessKey: {{<b64:40>}}
aws_secret_access_key = {{<b64:40>}}
spring.datasource.password={{<alnum:11>9}}
  "password": "{{<alnum:12>1}}",
{"apiKey":"{{<alnum:39>}}","region":"eu"}
{"access_token": "{{<url:64>}}", "token_type": "Bearer"}
{"auth": {"username": "svc", "password": "{{<alnum:10>!9}}"}}
"secret" : "{{<hex:64>}}"
{\"client_secret\": \"{{<alnum:40>}}\"}
password = "{{<alnum:12>0}}"   # terraform
  secret_key = "{{<b64:40>}}"
variable "db_password" { default = "{{<alnum:12>7}}" }
api_key = "{{<hex:32>}}"
token: str = "{{<alnum:40>}}"
client = Client(api_key="{{<alnum:48>}}")
requests.get(url, auth=("svc", "{{<alnum:14>6}}"))
conn = psycopg2.connect(host="db", user="app", password="{{<alnum:12>!3}}")
os.environ["API_KEY"] = "{{<alnum:32>}}"
const apiKey = '{{<alnum:36>}}';
const config = { secretKey: "{{<alnum:40>}}" };
process.env.TOKEN = "{{<hex:40>}}"
headers: { 'X-Api-Key': '{{<alnum:32>}}' }
x-api-key: {{<alnum:40>}}
Authorization: Token {{<hex:40>}}
Authorization: Bearer {{<alnum:40>}}
"Authorization": "ApiKey {{<b64:48>}}"
-H "Authorization: Bearer {{<url:48>}}"
curl -u admin:{{<alnum:12>7}} https://ci.example.org/api
curl -H 'X-Auth-Token: {{<hex:32>}}' https://api.example.org
curl "https://api.example.org/v1?api_key={{<hex:32>}}"
GET /search?key={{<alnum:39>}}&q=tap HTTP/1.1
wget --password={{<alnum:10>3}} https://example.org/f
mysql -u root -p{{<alnum:12>5}} crm
sshpass -p '{{<alnum:10>4}}' ssh host
docker login -u acme -p {{<alnum:24>}} registry.example.org
PGPASSWORD={{<alnum:12>2}} psql -h db
redis-cli -a {{<alnum:20>1}}
apiKey := "{{<alnum:32>}}"
var secretKey = []byte("{{<alnum:32>}}")
private const string Password = "{{<alnum:10>$1}}";
String token = "{{<alnum:32>}}";
define('AUTH_KEY', '{{<alnum:40>!x#3}}');
$password = '{{<alnum:10>8}}';
$config['encryption_key'] = '{{<alnum:32>}}';
'password' => '{{<alnum:11>!6}}',
:secret_key_base => "{{<hex:64>}}"
secret_key_base: {{<hex:128>}}
<add key="ApiKey" value="{{<alnum:32>}}" />
<password>{{<alnum:10>4}}</password>
<property name="password" value="{{<alnum:12>!1}}"/>
//registry.npmjs.org/:_authToken={{<hex:8>-<hex:4>-4<hex:3>-a<hex:3>-<hex:12>}}
_auth={{<b64:32>}}
machine git.example.org login me password {{<alnum:14>}}
my password is {{<alnum:9>!4}}
The API key is {{<alnum:32>}}, keep it safe.
here is the token: {{<hex:40>}}
login: jane / password: {{<alnum:8>#2}}
use secret {{<hex:32>}} for the webhook
Passwort: {{<alnum:9>!5}}
mot de passe : {{<alnum:9>?5}}
contraseña: {{<alnum:9>!3}}
пароль: {{<alnum:9>!8}}
密码：{{<alnum:10>@1}}
Here: {{ghp_<alnum:36>}}
{{github_pat_<alnum:22>_<alnum:59>}}
{{glpat-<url:20>}}
key {{AKIA<base32:16>}}
{{sk-ant-api03-<url:93>AA}}
{{sk-proj-<url:74>T3BlbkFJ<url:74>}}
{{hf_<letters:34>}}
{{xoxb-<digits:12>-<digits:12>-<alnum:24>}}
https://hooks.slack.com/services/{{T<upper:8>/B<upper:8>/<alnum:24>}}
{{AIza<url:35>}}
{{sk_live_<alnum:24>}}
{{SG.<url:22>.<url:43>}}
{{npm_<alnum:36>}}
{{pypi-AgEIcHlwaS5vcmc<url:70>}}
{{dop_v1_<hex:64>}}
{{gsk_<alnum:52>}}
{{xai-<alnum:80>}}
{{r8_<alnum:37>}}
{{pplx-<alnum:48>}}
{{nvapi-<url:64>}}
{{lsv2_pt_<hex:32>_<hex:10>}}
{{dckr_pat_<url:27>}}
{{hvs.<url:90>}}
{{shpat_<hex:32>}}
{{ATATT3xFfGF0<url:170>=<HEX:8>}}
{{PMAK-<hex:24>-<hex:34>}}
{{figd_<url:40>}}
{{ntn_<digits:11><alnum:35>}}
{{rubygems_<hex:48>}}
{{sntrys_eyJ<b64:60>_<b64:43>}}
{{glsa_<alnum:32>_<hex:8>}}
{{dapi<hex:32>}}
telegram bot {{<digits:9>:AA<url:33>}}
{{AGE-SECRET-KEY-1QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7LQPZRY9X8GF2TVDW0S3JN54KHCE}}
FIREBASE_API_KEY=AIza{{<url:35>}}
    "private_key_id": "<hex:40>",\n    "private_key": "-----BEGIN PRIVATE KEY-----\\nMIIE{{<b64:60>\\n<b64:64>}}\\n-----END PRIVATE KEY-----\\n"
ssh_pass: '{{<alnum:9>@2}}'
Passphrase: {{<alnum:9>%1}}
admin_pw='{{<alnum:10>$4}}'
credentials: svc_user / {{<alnum:11>!7}}
The database password for prod is {{<alnum:11>!7}}, don't share
root password => {{<alnum:10>9}}
set_password('{{<alnum:10>9#}}')
X-Vault-Token: hvs.{{<url:90>}}
.option("sfPassword", "{{<alnum:14>5}}")
api-key: {{<hex:32>}}
"subscription_key": "{{<hex:32>}}",
Ocp-Apim-Subscription-Key: {{<hex:32>}}
client_secret={{<alnum:32>&}}grant_type=client_credentials
export GITLAB_TOKEN=glpat-{{<url:20>}}
helm install x --set secret.key={{<alnum:32>}}
kubectl create secret generic db --from-literal=pass={{<alnum:12>8}}
az login --service-principal -u app -p {{<alnum:12>8Q~<alnum:20>}} --tenant t
conn_str = "Server=tcp:x.database.windows.net;User ID=u;Password={{<alnum:12>!8}};"
amqp://svc:{{<alnum:12>8@}}rabbit:5672
ldap_bind_password = "{{<alnum:12>!8}}"
"passwd": "{{<alnum:12>!8}}"
SMTP_PASS={{<alnum:16>7}}
FTP_PASSWORD: {{<alnum:11>5}}
apikey={{<alnum:20>4}}
'token': 'ey{{<alnum:30>4}}'
ACCESS_KEY = '{{<upper:20>}}'
secretKey="{{<b64:40>}}"
const SECRET = '{{<hex:32>}}';
app.secret_key = b'{{<alnum:24>1}}'
JWT_SECRET={{<alnum:18>-<alnum:12>}}
dsn: "mysql://root:{{<alnum:10>8@}}tcp(db:3306)/x"
stripe.api_key = "sk_live_{{<alnum:99>}}"
TWITTER_CONSUMER_SECRET = "{{<alnum:50>}}"
heroku_api_key: {{<hex:8>-<hex:4>-4<hex:3>-9<hex:3>-<hex:12>}}
bot.run("M{{<alnum:23>.<alnum:6>.<url:38>}}")
<token>{{<alnum:40>}}</token>
const key = "{{<hex:64>}}"
encryptionKey: "{{<alnum:32>}}"
AUTH_SECRET="{{<b64:43>=}}"
NEXTAUTH_SECRET={{<b64:43>=}}
mailgun: key-{{<hex:32>}}
sendgrid_key=SG.{{<url:22>.<url:43>}}
my passphrase is {{<alnum:11>!7}}
user: bob pass: {{<alnum:9>7}}
pwd:{{<alnum:8>8}}
密码: {{<alnum:9>8}}
Contraseña={{<alnum:9>8}}
-----BEGIN RSA PRIVATE KEY-----\n{{<b64:64>\n<b64:64>\n<b64:32>==}}\n-----END RSA PRIVATE KEY-----
-----BEGIN OPENSSH PRIVATE KEY-----\n{{<b64:70>\n<b64:70>}}\n-----END OPENSSH PRIVATE KEY-----
""".strip().splitlines()

NOTHING = r"""
API_KEY=<YOUR_API_KEY>
API_KEY=your-api-key-here
API_KEY=xxxxxxxxxxxxxxxxxxxxxxxx
api_key = "XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX"
password=changeme
password: change-me-now1
password: ********
password = ""
DB_PASSWORD=${DB_PASSWORD}
DB_PASSWORD=$(cat /run/secrets/db)
DB_PASSWORD: {{ .Values.db.password | quote }}
password: !vault |
password: ENC(placeholder)
password: "{{ lookup('env', 'DB_PASS1') }}"
token = os.getenv("API_TOKEN_V2")
token = os.environ['GITHUB_TOKEN']
apiKey: process.env.OPENAI_API_KEY,
const token = getToken(user1);
const apiKey = config.get('api.key1');
const password = document.getElementById("password1").value
String token = request.getHeader("X-Token-1");
api_key = var.datadog_api_key_v2
secret = data.vault_generic_secret.db1.data["password"]
secret_name: my-app-secrets-v2
secretKeyRef:\n  name: app-secret1\n  key: token1
secretName: tls-cert-2024
password_file=/run/secrets/db_password_1
key_file: /etc/ssl/private/server1.key
keyPath = "/home/user1/.ssh/id_rsa"
"key": "user_profile_1234567890_settings"
"tokenId": "<hex:40>"
"token_id": "<hex:32>"
"keyId": "<hex:32>"
"key_id": "1234abcd-12ab-34cd-56ef-1234567890ab"
"passId": "<hex:24>"
"credentialId": "<hex:32>"
"accessKeyId": "LTAI-not-the-key"
"idempotencyKey": "<hex:32>"
"partition_key": "<hex:32>"
"cacheKey": "<hex:32>"
"s3Key": "uploads/2024/<hex:32>.png"
"routing_key": "orders.created.v1"
"primaryKey": "<hex:24>"
"foreign_key": "<hex:24>"
"storage_key": "projects/alpha/2024/report1.pdf"
"translation_key": "user.login.button1"
"publicKey": "<b64:44>"
"continuation_token": "<b64:60>"
"nextPageToken": "<url:40>"
"next_token": "<b64:80>"
"page_token": "<url:32>"
"cursor_token": "<url:32>"
"pageToken": "CAoQAA1b2c3d4e5f6"
"csrf_token": "<alnum:32>"
"sync_token": "<url:32>"
"token_type": "Bearer1"
"prompt_tokens": 1234, "completion_tokens": 5678
"tokens": ["a1b2c3d4e5f6", "f6e5d4c3b2a1"]
"tokenizer": "cl100k_base_v2"
"token": "the", "logprob": -0.123
"token_count": "12345678901"
"eos_token": "<|endoftext|>"
"author": "a1b2c3d4e5f6a7b8"
"authority": "login1.example.org"
"auth_provider_x509_cert_url": "https://www.example.org/oauth2/v1/certs"
"keywords": "alpha1, beta2, gamma3"
"passthrough": "enabled-v2-1234567890"
commit <hex:40>
git-rev: <hex:40>
SRCREV_keystore = "<hex:40>"
ref: refs/heads/auth-token-<hex:8>
"integrity": "sha512-<b64:86>=="
sha256:<hex:64>
Digest: sha-256=<b64:43>=
etag: "<hex:32>"
checksum of keystore: <hex:64>
ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI<b64:43> me@host
-----BEGIN CERTIFICATE-----\n<b64:64>\n<b64:64>\n-----END CERTIFICATE-----
-----BEGIN PUBLIC KEY-----\n<b64:64>\n-----END PUBLIC KEY-----
request-id: <hex:8>-<hex:4>-4<hex:3>-a<hex:3>-<hex:12>
trace_id=<hex:32> span_id=<hex:16>
The password must be at least 12 characters long.
Forgot your password? Reset it at https://example.org/reset1
Your token has expired on 2024-05-17T10:15:00Z.
The secret to good bread is 70% hydration.
pass "San Francisco, CA" as the location
you pass blocks/Procs/lambdas1 and wrap them
a=ice-pwd:<alnum:24>
password_hash = "$2b$12$<alnum:53>"
assert token == "token1"
password: secret
pw = 12345678
def get_token(self, key1="default_value_1"):
if (key === "ArrowLeft1") return;
key={`item-${index1}-abc`}
for key, value2 in items.items():
map.put("key1", "value1-abcdef123456");
sort_key = "created_at_2024_01"
auth_mode: oauth2-client-credentials-v1
authentication: SCRAM-SHA-256
cred_type = "service_account_v1"
secret: projects/acme/secrets/db-pass/versions/3
token_uri: "https://oauth2.example.org/token1"
Authorization: Bearer <token>
Authorization: Bearer $ACCESS_TOKEN_1
curl -u $USER:$PASS1 https://x
curl -u username:password https://x
postgres://user:password@localhost:5432/db
postgres://user:${PASS1}@host/db
mysql://root:<password>@host/db
redis://localhost:6379/0
https://user:pass@example.com/
ghp_<alnum:20>
AKIA<base32:10>
xoxb-123
sk-...
sk-your-key-here-0123
AIza<url:12>
my-secret-token-name-for-the-vault-2
arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-AbCdEf
vault kv get secret/data/app1
<input type="password" name="password" id="pass-1234abcd">
placeholder="Enter your API key (e.g. abc123def456)"
className="token-<hex:8>"
data-key="<hex:16>"
<script src="/static/auth.<hex:20>.js"></script>
const API_KEY = process.env.API_KEY ?? ''
password = input("Enter password1: ")
if password == user.password2:
passwordHash := hashPassword(req.Password1)
@Value("${db.password1}")
<input type="password" placeholder="Password123">
secret = aws_secretsmanager_secret.db1.arn
token = jwt.encode(payload1, key, algorithm="HS256")
apiKey: '{{API_KEY_1}}'
api_key: %API_KEY_1%
--api-key $OPENAI_KEY2
Authorization: Bearer {{token1}}
Authorization: Bearer YOUR_TOKEN_123
key: "2024-01-15T10:00:00Z"
keyframes: 0%, 100%
primary key (id1, id2)
public_key: ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQ<b64:80> u@h
fingerprint: SHA256:<b64:43>
ETag: W/"<hex:32>"
version: sha-<hex:40>
image: repo/app@sha256:<hex:64>
go.sum h1:<b64:43>=
yarn: integrity sha512-<b64:86>==
session_id=<hex:32>
request_id: req_<alnum:24>
"id": "chatcmpl-<alnum:29>"
"tool_call_id": "call_<alnum:24>"
"system_fingerprint": "fp_<hex:10>"
"thoughtSignature": "<b64:200>"
"encrypted_content": "<b64:200>"
"signature": "<b64:86>=="
"nonce": "<b64:24>"
"kid": "<hex:40>"
"tokenAddress": "0x<hex:40>"
token: 0x<hex:40>
token_address = "0x<hex:40>"
author key: alice-2024
keyId: projects/p/locations/global/keyRings/r1/cryptoKeys/k1
"KeyId": "arn:aws:kms:us-east-1:111122223333:key/<hex:8>-<hex:4>-<hex:4>-<hex:4>-<hex:12>"
"UserPoolId": "us-east-1_<alnum:9>"
"accessKeyId": "AKIA<base32:15>"
secretName = "prod/app1/db-password-2"
password_reset_token_expiry_hours1: 24
tokenizer.json loaded 128256 tokens
auth0|<hex:24>
keystore.jks alias=key0
Password must contain 8-20 characters, 1 digit
the token limit is 8192
pass rate: 98.5%
secret santa 2024
"author": {"key": "/authors/OL23919A"}
"map_key": "<hex:32>"
"dedup_key": "<hex:32>"
"object_key": "<hex:32>"
React key={<hex:8>}
file_key: <alnum:22>
passport no. X1234567
commit_key=<hex:40>
uuid key: 123e4567-e89b-12d3-a456-426614174000
""".strip().splitlines()

_MARK = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)


def drawn(row: str) -> str:
    return expand(row).replace("\\n", "\n")


@pytest.mark.parametrize("row", SECRETS)
def test_a_secret_is_found_where_it_stands(rules_only, row):
    row = drawn(row)
    mark = _MARK.search(row)
    assert mark is not None
    text, start = row[: mark.start()] + mark[1] + row[mark.end() :], mark.start()
    found = [(f.location.start, f.location.end) for f in rules_only.scan(text).findings if f.category == "secret"]
    assert any(first < start + len(mark[1]) and start < last for first, last in found), text


@pytest.mark.parametrize("row", NOTHING)
def test_what_looks_like_a_secret_is_none(rules_only, row):
    text = drawn(row)
    found = [
        (f.rule_id, text[f.location.start : f.location.end])
        for f in rules_only.scan(text).findings
        if f.category == "secret" and f.severity != "info"
    ]
    assert not found, found

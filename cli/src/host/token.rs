//! `leme token`: bootstrap tokens, with kubeadm's flags, columns and defaults.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use leme_control_plane::pki;
use serde::Serialize;

use super::ADMIN;
use crate::output::{self, Format, say};

const TYPE: &str = "bootstrap.kubernetes.io/token";
const HOME: &str = "kube-system";
const USAGES: [&str; 2] = ["authentication", "signing"];
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

#[derive(Args)]
#[command(after_help = "Examples:
  leme token create --print-join-command      a token for a day, and the command that uses it
  leme token create --ttl 1h --description 'rack 4'
  leme token list
  leme token delete abcdef")]
pub(crate) struct Options {
    #[command(subcommand)]
    verb: Verb,
    /// How to reach the cluster [default: $KUBECONFIG, or /etc/kubernetes/admin.conf]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a token and print it
    #[command(after_help = "Examples:
  leme token create --print-join-command
  leme token create --ttl 1h --description 'rack 4'")]
    Create(Create),
    /// Show the cluster's tokens
    #[command(after_help = "Examples:
  leme token list
  leme token list --output json")]
    List {
        /// As a table or as JSON
        #[arg(short, long, value_enum, default_value_t)]
        output: Format,
    },
    /// Delete tokens: nobody joins with them any more
    #[command(after_help = "Example:
  leme token delete abcdef")]
    Delete {
        /// Tokens, or the part before the dot
        #[arg(required = true, value_name = "TOKEN", value_parser = token_id)]
        tokens: Vec<String>,
    },
    /// Print a token that no cluster knows yet
    #[command(after_help = "Example:
  leme token generate > token; leme init --token $(cat token)")]
    Generate,
}

#[derive(Args)]
pub(crate) struct Create {
    /// This token [default: a new one]
    token: Option<Token>,
    /// How long it lasts, like 24h or 90m; 0: for ever
    #[arg(long, default_value = "24h", value_parser = lifetime)]
    ttl: Duration,
    /// What it is for
    #[arg(long, value_delimiter = ',', default_values_t = USAGES.map(str::to_owned), value_parser = USAGES)]
    usages: Vec<String>,
    /// Groups that those have who come with it
    #[arg(long, value_delimiter = ',', default_values_t = [GROUP.to_owned()], value_parser = group)]
    groups: Vec<String>,
    /// A note for people
    #[arg(long)]
    description: Option<String>,
    /// Print the whole command with which a machine joins
    #[arg(long)]
    print_join_command: bool,
}

/// `<id>.<secret>`.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Token {
    /// Of as many random characters as a token has.
    pub(crate) fn generate() -> Result<Self> {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut random = File::open("/dev/urandom").context("cannot read /dev/urandom")?;
        let mut text = String::new();
        while text.len() < 22 {
            let mut byte = [0];
            random.read_exact(&mut byte)?;
            // 252 is the last multiple of 36: all characters are as likely.
            if byte[0] < 252 {
                text.push(char::from(ALPHABET[usize::from(byte[0]) % ALPHABET.len()]));
            }
        }
        let secret = text.split_off(6);
        Ok(Self { id: text, secret })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

fn is_part(part: &str, length: usize) -> bool {
    part.len() == length && part.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_lowercase())
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('.').filter(|(id, secret)| is_part(id, 6) && is_part(secret, 16));
        parts.map(|(id, secret)| Self { id: id.into(), secret: secret.into() }).ok_or_else(|| {
            "a token is six and sixteen small letters or digits, like abcdef.0123456789abcdef".to_owned()
        })
    }
}

fn token_id(text: &str) -> Result<String, String> {
    if is_part(text, 6) { Ok(text.to_owned()) } else { text.parse().map(|token: Token| token.id) }
}

pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let parsed =
        text.parse::<SignedDuration>().map_err(|_| "expected a time like 24h or 90m, or 0 for ever".to_owned())?;
    parsed.try_into().map_err(|_| "a token cannot last less than no time".to_owned())
}

fn group(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("system:bootstrappers:").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase() || matches!(byte, b':' | b'-');
    let fits = rest.bytes().all(plain) && rest.bytes().last().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if fits { Ok(text.to_owned()) } else { Err("a token's groups begin with system:bootstrappers:".to_owned()) }
}

pub(crate) async fn run(options: Options) -> Result<()> {
    if matches!(options.verb, Verb::Generate) {
        say(Token::generate()?);
        return Ok(());
    }
    let config = config(options.kubeconfig.as_deref()).await?;
    let client = Client::try_from(config.clone())?;
    match options.verb {
        Verb::Create(create) => {
            let token = create.token.clone().map_or_else(Token::generate, Ok)?;
            store(&client, &create, &token).await?;
            match create.print_join_command {
                true => say(join_command(&config, &token)?),
                false => say(&token),
            }
        }
        Verb::List { output } => list(&client, output).await?,
        Verb::Delete { tokens } => {
            for id in tokens {
                delete(&client, &id).await?;
                say(format_args!("bootstrap token {id:?} deleted"));
            }
        }
        Verb::Generate => {}
    }
    Ok(())
}

async fn config(flag: Option<&Path>) -> Result<kube::Config> {
    let said = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty());
    let text = match (flag, said) {
        (Some(file), _) => Kubeconfig::read_from(file).with_context(|| format!("cannot read {}", file.display()))?,
        (None, Some(_)) => Kubeconfig::read().context("cannot read what KUBECONFIG names")?,
        (None, None) => Kubeconfig::read_from(ADMIN)
            .with_context(|| format!("cannot read {ADMIN}: run this on a control-plane node, or say --kubeconfig"))?,
    };
    let config = kube::Config::from_custom_kubeconfig(text, &KubeConfigOptions::default()).await;
    config.context("the kubeconfig names no cluster that can be reached")
}

/// `leme join …` for the server and the authority that this configuration names.
pub(crate) fn join_command(config: &kube::Config, token: &Token) -> Result<String> {
    let server = config.cluster_url.authority().context("the cluster's address is no URL")?;
    let server = match server.port() {
        Some(_) => server.to_string(),
        None => format!("{server}:443"),
    };
    let authorities = config.root_cert.as_deref().unwrap_or_default();
    let Some(authority) = authorities.first() else { bail!("the kubeconfig names no certificate authority") };
    let hash = pki::public_key_hash(authority)?;
    Ok(format!("leme join {server} --token {token} --discovery-token-ca-cert-hash sha256:{hash}"))
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), HOME)
}

/// The default token of `init`.
pub(crate) async fn store_default(client: &Client, token: &Token, ttl: Duration) -> Result<()> {
    let create = Create {
        token: None,
        ttl,
        usages: USAGES.map(str::to_owned).into(),
        groups: vec![GROUP.into()],
        description: Some("The default bootstrap token generated by 'leme init'.".into()),
        print_join_command: false,
    };
    match store(client, &create, token).await {
        // A second `init` with the same --token.
        Err(error) if error.is::<Taken>() => {
            delete(client, &token.id).await?;
            store(client, &create, token).await
        }
        outcome => outcome,
    }
}

#[derive(Debug)]
struct Taken(String);

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token with id {0:?} exists already; see leme token list, or leme token delete {0}", self.0)
    }
}

impl std::error::Error for Taken {}

async fn store(client: &Client, create: &Create, token: &Token) -> Result<()> {
    let secret = secret(create, token, Timestamp::now())?;
    match secrets(client).create(&PostParams::default(), &secret).await {
        Err(kube::Error::Api(answer)) if answer.code == 409 => Err(Taken(token.id.clone()).into()),
        outcome => outcome.map(drop).context("cannot write the token"),
    }
}

fn secret(create: &Create, token: &Token, now: Timestamp) -> Result<Secret> {
    let mut data = vec![
        ("token-id".to_owned(), token.id.clone()),
        ("token-secret".to_owned(), token.secret.clone()),
        ("auth-extra-groups".to_owned(), create.groups.join(",")),
    ];
    data.extend(create.usages.iter().map(|usage| (format!("usage-bootstrap-{usage}"), "true".to_owned())));
    data.extend(create.description.iter().map(|text| ("description".to_owned(), text.clone())));
    if !create.ttl.is_zero() {
        let until = now.checked_add(create.ttl).context("the token would last too long")?;
        data.push(("expiration".to_owned(), seconds(until)));
    }
    let mut secret = Secret {
        type_: Some(TYPE.into()),
        data: Some(data.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    };
    secret.metadata.name = Some(name(&token.id));
    Ok(secret)
}

fn name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

/// RFC 3339 without fractions.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn delete(client: &Client, id: &str) -> Result<()> {
    match secrets(client).delete(&name(id), &DeleteParams::default()).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => bail!("there is no token {id}; see leme token list"),
        outcome => outcome.map(drop).with_context(|| format!("cannot delete token {id}")),
    }
}

/// kubeadm's `BootstrapToken` of `output.kubeadm.k8s.io`.
#[derive(Serialize)]
struct Row {
    token: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    usages: Vec<String>,
    groups: Vec<String>,
}

async fn list(client: &Client, format: Format) -> Result<()> {
    let list = secrets(client).list(&ListParams::default().fields(&format!("type={TYPE}"))).await;
    let rows: Vec<Row> = list.context("cannot read the tokens")?.iter().map(row).collect();
    let now = Timestamp::now();
    let header = ["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"];
    output::print(format, &header, &rows, |row| cells(row, now))
}

fn row(secret: &Secret) -> Row {
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?.0.clone();
        String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
    };
    let used = |usage: &&str| text(&format!("usage-bootstrap-{usage}")).as_deref() == Some("true");
    let groups = text("auth-extra-groups").unwrap_or_default();
    let id = text("token-id").unwrap_or_else(|| secret.name_any());
    Row {
        token: format!("{id}.{}", text("token-secret").unwrap_or_default()),
        description: text("description"),
        expires: text("expiration"),
        usages: USAGES.into_iter().filter(used).map(str::to_owned).collect(),
        groups: groups.split(',').filter(|group| !group.is_empty()).map(str::to_owned).collect(),
    }
}

fn cells(row: &Row, now: Timestamp) -> Vec<String> {
    let (left, until) = match &row.expires {
        None => ("<forever>".to_owned(), "<never>".to_owned()),
        Some(text) => (text.parse().map_or("<invalid>".to_owned(), |until| left(until, now)), text.clone()),
    };
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let description = or_none(row.description.clone().unwrap_or_default());
    vec![row.token.clone(), left, until, or_none(row.usages.join(",")), description, or_none(row.groups.join(","))]
}

/// In the largest unit that fits, as kubectl shows ages.
fn left(until: Timestamp, now: Timestamp) -> String {
    match until.duration_since(now).as_secs() {
        ..=0 => "<expired>".into(),
        seconds @ 1..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_six_and_sixteen_of_a_small_alphabet_and_no_two_are_the_same() {
        let token = Token::generate().unwrap().to_string();
        assert_eq!(token.parse::<Token>().unwrap().to_string(), token);
        assert_ne!(Token::generate().unwrap().to_string(), token);
        for bad in ["abcdef", "abcdef.0123", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcdef.x"] {
            assert!(bad.parse::<Token>().is_err(), "{bad}");
        }
        assert_eq!(token_id("abcdef").unwrap(), "abcdef");
        assert_eq!(token_id("abcdef.0123456789abcdef").unwrap(), "abcdef");
    }

    #[test]
    fn a_lifetime_is_said_as_go_says_it() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        for (text, wanted) in [("24h", hours(24)), ("24h0m0s", hours(24)), ("60m", hours(1)), ("0", hours(0))] {
            assert_eq!(lifetime(text).unwrap(), wanted, "{text}");
        }
        for bad in ["", "soon", "-1h", "24"] {
            assert!(lifetime(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_what_the_list_shows() {
        let create = Create {
            token: None,
            ttl: Duration::from_secs(3600),
            usages: vec!["signing".into()],
            groups: vec![GROUP.into()],
            description: None,
            print_join_command: false,
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let written = secret(&create, &"abcdef.0123456789abcdef".parse().unwrap(), now).unwrap();
        let shown = cells(&row(&written), now);
        let wanted = ["abcdef.0123456789abcdef", "60m", "2026-01-01T01:00:00Z", "signing", "<none>", GROUP];
        assert_eq!(shown, wanted);
        let forever =
            secret(&Create { ttl: Duration::ZERO, ..create }, &"abcdef.0123456789abcdef".parse().unwrap(), now);
        assert_eq!(cells(&row(&forever.unwrap()), now)[1..3], ["<forever>", "<never>"]);
    }
}

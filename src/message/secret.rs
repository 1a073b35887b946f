//! What counts as a secret in a body, by the place where it stands and by how a text looks.
//!
//! The gate that refuses a job and the redaction of a letter follow the same rules, so that the body of a job that was
//! taken never needs redaction: it can be journalled, and put into a letter later, byte for byte. The rules err on the
//! side of secrecy; what they cannot know is a secret under a name that says nothing, in a text that says nothing.
//!
//! In the fields that hold a publisher's own words ([`Rule::Words`]) they err less: there `passage` is a word and
//! `oidc:bob@example.org` a person, so a name has to hold a whole word for a secret, and what looks like `user:password@` has to
//! follow `//`, or a path has to follow it.

use crate::model::repository::{RepositoryType, is_secret_name, is_secret_option, parse_address, secret_start};

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Words that announce a secret also in front of a colon, as in `password: x`.
const ANNOUNCING: [&str; 4] = ["password", "passwd", "passphrase", "secret"];

/// Longest `user:password@` that is recognised, bytes; mount.cifs takes passwords of 512. Without a limit, a body made for
/// it would be looked through from each of its characters to its end.
const USER_BYTES_MAX: usize = 1024;

/// What ends a word in front of a user.
const SEPARATORS: &str = "\"'`,;=<([{";

/// What may stand at a place of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// The outermost map.
    Outermost,
    /// The field `repository` of the outermost map.
    Repository,
    /// `repository.credentials`: nothing but a reference or a sealed part. Whatever else a publisher puts there is most
    /// likely the secret itself.
    Credentials,
    /// `repository.credentials.reference`: the name of a file.
    Reference,
    /// `repository.credentials.sealed`: nothing but its two parts.
    Sealed,
    /// One of these parts: base64.
    SealedBytes,
    /// Anything here is a secret.
    Secret,
    /// Anything whose text does not look like a secret.
    Free,
    /// The same, in words of the publisher: `labels`, `requested_by`, `instance`.
    Words,
}

impl Rule {
    /// The rule for a field of a map that is under this one.
    pub fn of_field(self, name: &str) -> Self {
        match (self, name) {
            (Rule::Outermost, "repository") => Rule::Repository,
            (Rule::Outermost, "labels" | "requested_by" | "instance") => Rule::Words,
            (Rule::Words, name) if !is_secret_name(name) => Rule::Words,
            (Rule::Repository, "credentials") => Rule::Credentials,
            (Rule::Credentials, "reference") => Rule::Reference,
            (Rule::Credentials, "sealed") => Rule::Sealed,
            (Rule::Sealed, "enc" | "ciphertext") => Rule::SealedBytes,
            (Rule::Outermost | Rule::Repository | Rule::Free, name) if !is_secret_option(name) => Rule::Free,
            _ => Rule::Secret,
        }
    }

    /// The rule for an item of an array that is under this one.
    pub fn of_item(self) -> Self {
        match self {
            Rule::Outermost | Rule::Repository | Rule::Free => Rule::Free,
            Rule::Words => Rule::Words,
            _ => Rule::Secret,
        }
    }

    /// Where the secret of a text begins, if it has one that is not masked yet.
    pub fn start_in(self, text: &str) -> Option<usize> {
        let start = match self {
            Rule::Outermost | Rule::Repository | Rule::Free => secret_in(text),
            Rule::Words => secret_in_words(text),
            Rule::Reference if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b)) => None,
            Rule::SealedBytes if text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=_-".contains(&b)) => None,
            _ => Some(0),
        };
        start.filter(|start| text.get(*start..) != Some(REDACTED))
    }

    /// Whether the name of a field under this one holds a secret itself.
    pub fn forbids_name(self, name: &str) -> bool {
        match self {
            Rule::Words => secret_in_words(name).is_some(),
            _ => secret_in(name).is_some(),
        }
    }

    /// Whether a value that is no text, map or array is a secret.
    pub fn forbids_other(self, null: bool) -> bool {
        match self {
            Rule::Outermost | Rule::Repository | Rule::Free | Rule::Words => false,
            Rule::Secret => true,
            Rule::Credentials | Rule::Reference | Rule::Sealed | Rule::SealedBytes => !null,
        }
    }
}

/// Where the first secret begins in a text; all that follows may belong to it.
pub(super) fn secret_in(text: &str) -> Option<usize> {
    let user = password_of_user(text, false);
    [secret_start(text, is_secret_option), announced(text), user].into_iter().flatten().min()
}

/// The same in a publisher's own words.
fn secret_in_words(text: &str) -> Option<usize> {
    let user = password_of_user(text, true);
    [secret_start(text, is_secret_name), announced(text), user].into_iter().flatten().min()
}

/// The text with its secret masked.
pub fn masked(text: &str) -> String {
    match Rule::Free.start_in(text) {
        Some(start) => format!("{}{REDACTED}", text.get(..start).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Where the value begins in `password: x`, in `"password": "x"` and in either within a text of its own.
fn announced(text: &str) -> Option<usize> {
    let lower = text.to_ascii_lowercase();
    text.match_indices(':').map(|(colon, _)| (colon, lower.get(..colon).unwrap_or_default())).find_map(
        |(colon, left)| {
            let left = left.trim_end_matches(|c: char| c.is_whitespace() || "\"'\\".contains(c));
            let left = left.trim_end_matches(|c: char| c.is_ascii_digit());
            ANNOUNCING.iter().any(|word| left.ends_with(word)).then_some(colon + 1)
        },
    )
}

/// Where the password begins in `smb://user:password@server/share`, `user:password@server:/path` and, unless it stands `in_words`,
/// `user:password@server`.
fn password_of_user(text: &str, in_words: bool) -> Option<usize> {
    use RepositoryType::{Ceph, Cifs, Nfs};
    // `mon1:6789:/a@b` and `//fe80::1%eth0/a@b` are addresses without a user.
    if !text.contains('@') || [Nfs, Cifs, Ceph].iter().any(|form| parse_address(*form, text).is_ok()) {
        return None;
    }
    let mut before = ['\0'; 2];
    for (begin, c) in std::iter::once((0, '\0')).chain(text.char_indices().map(|(at, c)| (at + c.len_utf8(), c))) {
        before = [before[1], c];
        let after_slashes = matches!(before, ['/', '/'] | ['\\', '\\']);
        let boundary = c.is_control() || c.is_whitespace() || SEPARATORS.contains(c);
        let text = text.get(begin..).unwrap_or_default();
        if (after_slashes || boundary && (!in_words || has_path(text)))
            && let Some(start) = password_after(text, after_slashes)
        {
            return Some(begin + start);
        }
    }
    None
}

/// Whether a path follows the server in a text that begins with a user, as in `user:password@server:/path`.
fn has_path(text: &str) -> bool {
    let text = text.get(..text.floor_char_boundary(USER_BYTES_MAX)).unwrap_or_default();
    text.split_once('@').is_some_and(|(_, server)| {
        server.chars().take_while(|c| !c.is_whitespace() && *c != '"').any(|c| matches!(c, '/' | '\\'))
    })
}

/// Where the password begins in a text that begins with a user, if there is one. After `//` a password may hold anything;
/// elsewhere a slash in front of it (`nas:/a@b`) or a blank or quote within it makes it something else.
fn password_after(text: &str, after_slashes: bool) -> Option<usize> {
    let text = text.get(..text.floor_char_boundary(USER_BYTES_MAX))?;
    let ends_user = |c: char| c == ':' || after_slashes && c == '%';
    let ends_word = |c: char| c.is_control() || c.is_whitespace() || "/\\@".contains(c) || SEPARATORS.contains(c);
    let colon = text.find(|c: char| ends_user(c) || ends_word(c))?;
    let (user, rest) = text.split_at_checked(colon)?;
    let password = rest.strip_prefix(ends_user)?.split_once('@')?.0;
    let plain = !password.starts_with('/') && !password.contains(|c: char| c.is_whitespace() || c == '"');
    (!user.is_empty() && !password.is_empty() && (after_slashes || plain)).then_some(colon + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_text_is_found_where_it_begins() {
        for (text, kept) in [
            ("vers=3.0,password=hunter2", "vers=3.0,password="),
            ("nas_password = hunter2", "nas_password ="),
            ("username=bob%hunter2", "username=bob%"),
            ("smb://bob:hunter2@nas/s", "smb://bob:"),
            ("smb://bob:hun/ter2@nas/s", "smb://bob:"),
            ("//bob%hunter2@nas/s", "//bob%"),
            ("bob:hunter2@nas:/x", "bob:"),
            (r"\\bob:hunter2@nas\s", r"\\bob:"),
            ("cannot mount bob:hunter2@nas:/x", "cannot mount bob:"),
            ("a=bob:hunter2@nas", "a=bob:"),
            ("password: hunter2", "password:"),
            (r#"{"Password2" : "hunter2"}"#, r#"{"Password2" :"#),
            (r#"{\"clientSecret\":\"hunter2\"}"#, r#"{\"clientSecret\":"#),
            ("https://nas/?secret=hunter2", "https://nas/?secret="),
        ] {
            assert_eq!(masked(text), format!("{kept}{REDACTED}"));
            assert_eq!(masked(&masked(text)), masked(text), "masked twice");
        }
    }

    #[test]
    fn a_publishers_own_words_are_no_secrets_unless_they_say_so() {
        let words = |field: &str| Rule::Outermost.of_field(field);
        for (field, text) in [
            ("requested_by", "oidc:bob@example.org"),
            ("labels", "mailto:ops@example.org"),
            ("labels", "passage=3, credit_id: 7"),
            ("instance", "web:prod@dc1"),
        ] {
            assert_eq!(words(field).start_in(text), None, "{text}");
        }
        for name in ["passage", "passive", "credit_id", "bypass-lane", "web:prod@dc1"] {
            assert_eq!(words("labels").of_field(name), Rule::Words, "{name}");
            assert!(!words("labels").forbids_name(name), "{name}");
        }
        for name in ["nas_password", "pass", "nas-pass2", "Secret", "key", "credentials"] {
            assert_eq!(words("labels").of_field(name), Rule::Secret, "{name}");
        }
        for text in [
            "smb://bob:hunter2@nas/s",
            "from bob:hunter2@nas:/x",
            "nas_pass=hunter2",
            "password: hunter2",
            "user=bob%hunter2",
        ] {
            assert!(words("requested_by").start_in(text).is_some(), "{text}");
        }
        // Where nobody expects a publisher's words, the strict rules hold.
        assert!(words("mount").start_in("bob:hunter2@nas:/share").is_some());
        assert!(words("repository").of_field("address").start_in("bob:hunter2@nas:/share").is_some());
        assert_eq!(words("repository").of_field("passfile"), Rule::Secret);
    }

    #[test]
    fn an_innocent_text_holds_no_secret() {
        for text in [
            "vers=4.2,hard,username=backup@example.org",
            "admin@example.org",
            "nas.example:/export@site",
            "mon1:6789,[::1]:3300:/a@b",
            "[fe80::1%eth0]:/a@b",
            "//2001:db8::1/share@site",
            "//nas/share@site",
            "/srv/a:b@c",
            "admin@b3acfc0d-575f-41d3-9c91-0e7ed3dbb3fa.cephfs=/backup",
            "at 10:30 by bob@example.org",
            "bypassed: monkey=3",
            "ratio: 100 % @ noon",
        ] {
            assert_eq!(secret_in(text), None, "{text}");
        }
    }
}

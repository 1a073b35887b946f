//! Mount options, as one text with commas, in the way of CloudStack's form.

use super::{InvalidRepository, MountOption};

/// Longest text of all options together, bytes: one page, what the kernel takes from mount(2).
pub const OPTIONS_BYTES_MAX: usize = 4095;

/// Options in one text at most.
const OPTIONS_MAX: usize = 64;
/// Longest name, bytes.
const KEY_BYTES_MAX: usize = 64;
/// Longest value, bytes.
const VALUE_BYTES_MAX: usize = 255;

/// Options that undo what a mount of foreign data must have (no devices, no set-uid, nothing to execute), that are no
/// mount of the address at all, or that put another address in its place.
const REFUSED: [&str; 36] = [
    "dev",
    "suid",
    "exec",
    "defaults",
    "user",
    "users",
    "owner",
    "group",
    "bind",
    "rbind",
    "remount",
    "move",
    "loop",
    "offset",
    "sizelimit",
    "encryption",
    "shared",
    "rshared",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "source",
    "unc",
    "target",
    "path",
    "prefixpath",
    "prepath",
    "ip",
    "addr",
    "mon_addr",
    "helper",
    "uhelper",
    "sloppy",
];

/// Beginnings of the names of options that carry a secret or lead to one. mount.cifs takes any name that begins with
/// `pass` or `cred` for a password or a credentials file.
const SECRET_PREFIXES: [&str; 3] = ["pass", "cred", "secret"];

/// Words that make a secret of any name they are in, such as `nas_password` or `clientSecret`.
const SECRET_PARTS: [&str; 3] = ["passw", "passphrase", "secret"];

/// Words that do so where they stand alone, as in `nas_pass`, but not in `all_passed`.
const SECRET_WORDS: [&str; 5] = ["pass", "cred", "creds", "credential", "credentials"];

/// Whether the name of a mount option announces a secret or leads to one.
pub fn is_secret_option(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    SECRET_PREFIXES.iter().any(|prefix| lower.starts_with(prefix)) || is_secret_name(name)
}

/// Whether a name in a publisher's own words, such as a label, does so: `nas_pass` and `pass2`, but not `passage` or `credit_id`.
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    name == "key"
        || SECRET_PARTS.iter().any(|part| name.contains(part))
        || words.into_iter().any(|word| SECRET_WORDS.contains(&word.trim_end_matches(|c: char| c.is_ascii_digit())))
}

const fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

/// Where the first secret begins in a text of options, however badly the text is formed; none without a secret. `is_secret`
/// says which names announce one. A secret may hold commas and blanks, so all that follows belongs to it.
pub fn secret_start(options: &str, is_secret: fn(&str) -> bool) -> Option<usize> {
    let mut words_begin = 0;
    for (equals, _) in options.match_indices('=') {
        let left = options.get(words_begin..equals)?.trim_end();
        let key = left.rsplit(|c: char| !u8::try_from(c).is_ok_and(is_key_byte)).next().unwrap_or_default();
        let value_begins = equals + 1;
        if is_secret(key) {
            return Some(value_begins);
        }
        if key.eq_ignore_ascii_case("user") || key.eq_ignore_ascii_case("username") {
            let rest = options.get(value_begins..)?;
            // No longer than options may be: without a limit, a text made for it would be read from each of its users on.
            let rest = rest.get(..rest.floor_char_boundary(OPTIONS_BYTES_MAX))?;
            let value = rest.split(',').next().unwrap_or_default();
            if let Some(percent) = value.find('%') {
                return Some(value_begins + percent + 1);
            }
        }
        words_begin = value_begins;
    }
    None
}

/// Takes a text such as `vers=4.2,hard` apart. Blanks around a comma are let pass, since forms are filled in by people.
///
/// # Errors
/// A secret, an option that is refused, or a character that could be taken for something else on its way.
pub fn parse_options(text: &str) -> Result<Vec<MountOption>, InvalidRepository> {
    if let Some(start) = secret_start(text, is_secret_option) {
        let position = text.get(..start).unwrap_or_default().matches(',').count() + 1;
        return Err(InvalidRepository::Secret { position });
    }
    if text.len() > OPTIONS_BYTES_MAX || text.matches(',').count() >= OPTIONS_MAX {
        return Err(InvalidRepository::Options { rule: "there are at most 64 in 4095 bytes" });
    }
    if text.trim_matches(' ').is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').enumerate().map(|(index, element)| option(index + 1, element.trim_matches(' '))).collect()
}

fn option(position: usize, element: &str) -> Result<MountOption, InvalidRepository> {
    let (key, value) = match element.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (element, None),
    };
    let well_formed = (1..=KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(is_key_byte) && !key.starts_with('-');
    if !well_formed {
        let rule = "a name has 1 to 64 of a-z, A-Z, 0-9, `_`, `.` and `-`";
        return Err(InvalidRepository::Option { position, key: None, rule });
    }
    if is_secret_option(key) {
        return Err(InvalidRepository::Secret { position });
    }
    let refused = |rule| Err(InvalidRepository::Option { position, key: Some(key.to_owned()), rule });
    let lower = key.to_ascii_lowercase();
    // `user=bob` is a login name for mount.cifs; alone it lets any user of the host unmount.
    if REFUSED.contains(&lower.as_str()) && !(lower == "user" && value.is_some()) || lower.starts_with("x-") {
        return refused("it would change what is mounted, or how safely");
    }
    let characters = |b: u8| b.is_ascii_alphanumeric() || b"_.:/@+-".contains(&b);
    if value.is_some_and(|value| !(1..=VALUE_BYTES_MAX).contains(&value.len()) || !value.bytes().all(characters)) {
        return refused("a value has 1 to 255 of a-z, A-Z, 0-9 and `_.:/@+-`");
    }
    Ok(MountOption { key: key.to_owned(), value: value.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn joined(options: &[MountOption]) -> String {
        options.iter().map(MountOption::to_element).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn the_options_people_use_are_taken_in_their_order() {
        for text in [
            "vers=4.2,nconnect=8,hard,noatime,rsize=1048576,timeo=600",
            "vers=3.1.1,username=backup@example.org,domain=CORP,sec=ntlmssp,nobrl",
            "name=backup,recover_session=clean,fs=cephfs",
            "user=bob,nodev,nosuid,noexec",
        ] {
            assert_eq!(joined(&parse_options(text).unwrap()), text);
        }
        assert_eq!(joined(&parse_options(" vers=4.2 , hard ").unwrap()), "vers=4.2,hard");
        assert_eq!(parse_options(""), Ok(Vec::new()));
    }

    #[test]
    fn options_that_carry_a_secret_are_told_apart_and_their_value_is_not_repeated() {
        for text in [
            "password=hunter2",
            "vers=3.0,PASSWORD=hunter2",
            "pass=hunter2",
            "passwd=hunter2",
            "password2=hunter2",
            "secret=hunter2",
            "secretfile=/etc/hunter2",
            "credentials=/root/hunter2",
            "cred=hunter2",
            "key=hunter2",
            "username=bob%hunter2",
            "user=bob%hunter2",
            "ro password = hunter2",
            "password=a;b\nhunter2",
            "hard,password",
        ] {
            let error = parse_options(text).unwrap_err();
            assert!(matches!(error, InvalidRepository::Secret { .. }), "{text}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn options_that_could_mean_something_else_are_refused() {
        for text in [
            "a,,b", ",", "a,", "a b", "a\nb", "a\0", "a=b c", "a=$(id)", "a=`id`", "a=b;c", "a=b|c", "a=b&c", "a='b'",
            "a=\"b\"", r"a=b\c", "a=b=c", "a=", "=b", "-o", "ä=1", "a=ä", "a%b", "a=b%c",
        ] {
            assert!(parse_options(text).is_err(), "{text}");
        }
        for text in REFUSED.iter().copied().chain(["SUID", "x-mount.mkdir", "X-systemd.automount", "ip=10.0.0.1"]) {
            assert!(parse_options(text).is_err(), "{text}");
        }
        assert!(parse_options(&vec!["a"; 65].join(",")).is_err());
        assert!(parse_options(&format!("a={}", "b".repeat(256))).is_err());
    }

    proptest! {
        #[test]
        fn every_accepted_option_is_one_element_without_a_comma_and_is_read_back_as_itself(text in any::<String>()) {
            if let Ok(options) = parse_options(&text) {
                prop_assert_eq!(parse_options(&joined(&options)), Ok(options));
            }
        }

        #[test]
        fn texts_near_the_grammar_are_read_back_as_themselves(
            text in r"([a-z_.-]{0,4}(=[a-z0-9:/@+ ,;'%$\\\n\x00-]{0,6})?,?){0,5}"
        ) {
            if let Ok(options) = parse_options(&text) {
                for option in &options {
                    let element = option.to_element();
                    let syntax = b",;'\"\\$`|&<>(){}*?!#%";
                    let plain = element.bytes().all(|b| b.is_ascii_graphic() && !syntax.contains(&b));
                    prop_assert!(plain, "{}", element);
                    prop_assert_eq!(parse_options(&element), Ok(vec![option.clone()]));
                }
                prop_assert_eq!(parse_options(&joined(&options)), Ok(options));
            }
        }

        #[test]
        fn a_secret_is_found_whatever_stands_around_it(
            before in r"[a-z0-9=, ]{0,12}[, ]", after in r"[^%=]{0,12}"
        ) {
            let text = format!("{before}password=hunter2{after}");
            let start = secret_start(&text, is_secret_name).unwrap();
            prop_assert!(!text[..start].contains("hunter2"));
        }
    }
}

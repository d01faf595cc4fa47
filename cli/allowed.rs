//! `build --allow`: what a Dockerfile cannot give itself; the caller has to say so.

use rbuild_engine::DeviceGrants;

use crate::error::CliError;
use crate::terminal::clean_line;

/// The privileges of one build.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// `RUN --network=host`.
    pub host_network: bool,
    /// `RUN --security=insecure`.
    pub insecure: bool,
    /// `RUN --device`.
    pub devices: DeviceGrants,
    /// An output that removes files.
    pub local_delete: bool,
}

impl Allowed {
    /// Reads the values of `--allow`.
    ///
    /// # Errors
    /// A privilege that there is not, in buildx's words.
    pub fn read(given: &[String]) -> Result<Allowed, CliError> {
        let mut allowed = Allowed::default();
        for value in given {
            match value.strip_prefix("device=") {
                Some(device) => allowed.device(device)?,
                None => value.split(',').filter(|word| !word.is_empty()).try_for_each(|word| allowed.word(word))?,
            }
        }
        Ok(allowed)
    }

    fn word(&mut self, word: &str) -> Result<(), CliError> {
        match word {
            "network.host" => self.host_network = true,
            "security.insecure" => self.insecure = true,
            "device" => self.devices.all = true,
            "buildx.local.delete" => self.local_delete = true,
            _ if word.starts_with("buildx.local.delete=") => {
                return Err(CliError::new("buildx.local.delete does not accept a value"));
            }
            other => {
                let hint =
                    "privileges are network.host, security.insecure, device, device=NAME and buildx.local.delete";
                return Err(CliError::new(format!("unknown entitlement {}", clean_line(other))).with_hint(hint));
            }
        }
        Ok(())
    }

    /// `NAME[,alias=OTHER]`; an empty name is every device.
    fn device(&mut self, text: &str) -> Result<(), CliError> {
        let (name, options) = text.split_once(',').map_or((text, None), |(name, rest)| (name, Some(rest)));
        let mut alias = None;
        for field in options.into_iter().flat_map(|rest| rest.split(',')) {
            match field.split_once('=') {
                Some(("alias", value)) => alias = Some(value).filter(|value| !value.is_empty()),
                Some((key, _)) => {
                    return Err(CliError::new(format!("unknown device config key {:?}", clean_line(key))));
                }
                None => return Err(CliError::new(format!("invalid device config {:?}", clean_line(field)))),
            }
        }
        match (name, alias) {
            ("", None) => self.devices.all = true,
            ("", Some(_)) => return Err(CliError::new(format!("invalid device config {:?}", clean_line(text)))),
            (name, Some(alias)) => drop(self.devices.aliases.insert(alias.to_owned(), name.to_owned())),
            (name, None) => drop(self.devices.names.insert(name.to_owned())),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Result<Allowed, String> {
        let given: Vec<String> = given.iter().map(|&value| value.to_owned()).collect();
        Allowed::read(&given).map_err(|error| error.message)
    }

    #[test]
    fn privileges_are_given_by_name() {
        assert_eq!(read(&[]).unwrap(), Allowed::default());
        let some = Allowed { host_network: true, insecure: true, local_delete: true, ..Allowed::default() };
        assert_eq!(read(&["network.host,security.insecure", "buildx.local.delete"]).unwrap(), some);
        assert_eq!(read(&["everything"]).unwrap_err(), "unknown entitlement everything");
        assert_eq!(read(&["buildx.local.delete=1"]).unwrap_err(), "buildx.local.delete does not accept a value");
    }

    #[test]
    fn devices_are_given_all_or_each() {
        assert!(read(&["device"]).unwrap().devices.all && read(&["device="]).unwrap().devices.all);
        let given = read(&["device=a.b/c=d", "device=x/y", "device=p/q=r,alias=s/t=u"]).unwrap().devices;
        assert!(!given.all);
        assert_eq!(given.names, ["a.b/c=d".to_owned(), "x/y".to_owned()].into());
        assert_eq!(given.aliases, [("s/t=u".to_owned(), "p/q=r".to_owned())].into());
        for (text, want) in [
            ("device=a/b,c", "invalid device config \"c\""),
            ("device=a/b,alais=c", "unknown device config key \"alais\""),
            ("device=,alias=c", "invalid device config \",alias=c\""),
        ] {
            assert_eq!(read(&[text]).unwrap_err(), want);
        }
    }
}

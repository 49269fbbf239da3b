//! The simulated phone: model, firmware, part number, and User-Agent. Pure.

use std::fmt;

use crate::constituency::MacAddress;
use crate::phone_config::PhoneNames;

/// One phone as it left the factory: its address, hardware and firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualPhone {
    /// Its EUI-48: in its certificate and in its files' names.
    pub mac: MacAddress,
    /// The model as the User-Agent writes it, for example `VVX_500`.
    pub model: String,
    /// Its firmware version, for example `5.9.7.4477`.
    pub firmware: String,
    /// The part number of the hardware, for example `3111-44500-001`. It is part of the firmware image's name.
    pub part_number: String,
}

/// The two programs in a phone that fetch files. Each has its own User-Agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The updater runs first and updates the firmware.
    Updater,
    /// The phone application.
    Application,
}

/// The requests that a phone makes at boot, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootOrder {
    /// Like a VVX on UC Software 5.9: logs of both programs, a firmware image, directories and call lists.
    UcSoftware5,
    /// Like a `SoundPoint` IP on UC Software 4.0: configuration, overrides, site license and one log.
    UcSoftware4,
}

impl VirtualPhone {
    /// The model of [`VirtualPhone::new`].
    pub const DEFAULT_MODEL: &str = "VVX_500";
    /// The firmware of [`VirtualPhone::new`].
    pub const DEFAULT_FIRMWARE: &str = "5.9.7.4477";
    /// The part number of [`VirtualPhone::new`].
    pub const DEFAULT_PART_NUMBER: &str = "3111-44500-001";

    /// A VVX 500 with this address.
    #[must_use]
    pub fn new(mac: MacAddress) -> Self {
        Self {
            mac,
            model: Self::DEFAULT_MODEL.to_owned(),
            firmware: Self::DEFAULT_FIRMWARE.to_owned(),
            part_number: Self::DEFAULT_PART_NUMBER.to_owned(),
        }
    }

    /// The same phone with an address that is `steps` higher.
    #[must_use]
    pub fn neighbor(&self, steps: u64) -> Self {
        Self { mac: self.mac.plus(steps), ..self.clone() }
    }

    /// The model as master configurations write it (`VVX500`, `SPIP550`): the User-Agent's, without underscores.
    #[must_use]
    pub fn configuration_model(&self) -> String {
        self.model.replace('_', "")
    }

    /// Its values for the placeholders of a master configuration.
    #[must_use]
    pub fn names(&self) -> PhoneNames {
        let (model, part_number) = (self.configuration_model(), self.part_number.clone());
        PhoneNames { mac: Some(self.mac), model: Some(model), part_number: Some(part_number) }
    }

    /// The User-Agent of `program`.
    ///
    /// Control characters are left out, because a header must not contain them.
    #[must_use]
    pub fn user_agent(&self, program: Program) -> String {
        let Self { model, firmware, .. } = self;
        let mut user_agent = format!("FileTransport {}-{model}-UA/{firmware}", self.family());
        if self.major_version() != Some(3) {
            user_agent.push_str(" Type/");
            user_agent.push_str(program.name());
        }
        user_agent.retain(|c| c == ' ' || c.is_ascii_graphic());
        user_agent
    }

    /// The boot order of this phone's family.
    #[must_use]
    pub fn boot_order(&self) -> BootOrder {
        let sound_family = matches!(self.family(), "PolycomSoundPointIP" | "PolycomSoundStationIP");
        if sound_family && self.major_version().is_none_or(|major| major < 5) {
            BootOrder::UcSoftware4
        } else {
            BootOrder::UcSoftware5
        }
    }

    /// The product family in the User-Agent, before the model.
    fn family(&self) -> &'static str {
        const FAMILIES: [(&str, &str); 7] = [
            ("SPIP", "PolycomSoundPointIP"),
            ("SSIP", "PolycomSoundStationIP"),
            ("SSDuo", "PolycomSoundStationIP"),
            ("Edge", "PolyEdge"),
            ("CCX", "PolyCCX"),
            ("Trio", "PolycomRealPresenceTrio"),
            ("VVX", "PolycomVVX"),
        ];
        let known = FAMILIES.iter().find(|(prefix, _)| self.model.starts_with(prefix));
        known.map_or("PolycomVVX", |(_, family)| *family)
    }

    fn major_version(&self) -> Option<u32> {
        self.firmware.split('.').next()?.parse().ok()
    }
}

impl Program {
    /// The name in the User-Agent's `Type/`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Updater => "Updater",
            Self::Application => "Application",
        }
    }
}

impl fmt::Display for VirtualPhone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} on {})", self.mac, self.model, self.firmware)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phone(model: &str, firmware: &str) -> VirtualPhone {
        let mac = "00005e00530c".parse().unwrap();
        VirtualPhone { model: model.to_owned(), firmware: firmware.to_owned(), ..VirtualPhone::new(mac) }
    }

    #[test]
    fn user_agent_equals_that_of_real_phones() {
        for (model, firmware, program, expected) in [
            ("VVX_500", "5.9.7.4477", Program::Application, "PolycomVVX-VVX_500-UA/5.9.7.4477 Type/Application"),
            ("VVX_500", "5.9.7.47435", Program::Updater, "PolycomVVX-VVX_500-UA/5.9.7.47435 Type/Updater"),
            ("SPIP_335", "3.2.1.0078", Program::Application, "PolycomSoundPointIP-SPIP_335-UA/3.2.1.0078"),
            ("SSIP_6000", "5.0.3.1667", Program::Updater, "PolycomSoundStationIP-SSIP_6000-UA/5.0.3.1667 Type/Updater"),
            ("Edge_E450", "8.0.0.15602", Program::Application, "PolyEdge-Edge_E450-UA/8.0.0.15602 Type/Application"),
            ("CCX_600", "8.0.2.3267", Program::Application, "PolyCCX-CCX_600-UA/8.0.2.3267 Type/Application"),
        ] {
            assert_eq!(phone(model, firmware).user_agent(program), format!("FileTransport {expected}"));
        }
    }

    #[test]
    fn any_model_name_gives_a_valid_header() {
        assert!(!phone("VVX\r\nHost: x", "5").user_agent(Program::Updater).contains(['\r', '\n']));
    }

    #[test]
    fn older_families_make_fewer_requests() {
        assert_eq!(phone("SPIP_550", "4.0.15.1047").boot_order(), BootOrder::UcSoftware4);
        assert_eq!(phone("SSIP_6000", "5.0.3.1667").boot_order(), BootOrder::UcSoftware5);
        assert_eq!(phone("VVX_500", "4.1.0").boot_order(), BootOrder::UcSoftware5);
    }

    #[test]
    fn master_configuration_model_has_no_underscore() {
        assert_eq!(phone("SPIP_550", "4.0.15.1047").configuration_model(), "SPIP550");
    }
}

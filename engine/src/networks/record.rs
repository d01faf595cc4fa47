//! A network as the store knows it: the row of the table `networks`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::SystemTime;

use rbuild_oci::Digest;
use rbuild_runtime::network::{BridgeOptions, Subnet, Subnet6};
use rbuild_store::db;
use rbuild_store::rusqlite::{self, OptionalExtension, Row, Transaction};
use serde::{Deserialize, Serialize};

/// How a network is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    Bridge,
    /// The host's own.
    Host,
    /// Nothing but loopback.
    Null,
}

impl Driver {
    pub fn as_str(self) -> &'static str {
        match self {
            Driver::Bridge => "bridge",
            Driver::Host => "host",
            Driver::Null => "null",
        }
    }
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    /// Nanoseconds since 1970; 0 for those that were always there.
    pub created: i64,
    pub driver: Driver,
    /// The bridge as it is to be; of a user's network with the range it has.
    pub bridge: BridgeOptions,
    /// The part of the range that addresses are taken from.
    pub range: Option<Subnet>,
    /// The same of the IPv6 range.
    #[serde(default)]
    pub range6: Option<Subnet6>,
    /// Addresses that are somebody else's, by his name.
    #[serde(default)]
    pub auxiliary: BTreeMap<String, IpAddr>,
    /// Of no meaning outside of a swarm: only shown.
    #[serde(default)]
    pub attachable: bool,
    /// Whether the user named the range: only then may he name addresses in it.
    pub chosen: bool,
    pub options: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

impl Network {
    /// One that every store has. Its id follows from its name.
    pub(super) fn predefined(name: &str, driver: Driver, bridge: BridgeOptions) -> Self {
        Self {
            id: Digest::sha256_of(format!("rbuild network {name}").as_bytes()).hex().to_owned(),
            name: name.to_owned(),
            created: 0,
            driver,
            bridge,
            range: None,
            range6: None,
            auxiliary: BTreeMap::new(),
            attachable: false,
            chosen: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        }
    }

    pub fn is_predefined(&self) -> bool {
        self.created == 0
    }

    /// The address that ports are published on where nothing else is said.
    pub fn binding(&self) -> Option<Ipv4Addr> {
        self.options.get(HOST_BINDING).and_then(|text| text.parse().ok())
    }

    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    pub fn created_at(&self) -> SystemTime {
        db::time(self.created)
    }
}

/// Docker's option for that.
pub(super) const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";

const COLUMNS: &str = "SELECT json FROM networks";

fn from_row(row: &Row<'_>) -> rusqlite::Result<Network> {
    let json: String = row.get(0)?;
    serde_json::from_str(&json)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

/// Every network of the user's, by name.
pub(super) fn all(tx: &Transaction<'_>) -> rusqlite::Result<Vec<Network>> {
    tx.prepare_cached(&format!("{COLUMNS} ORDER BY name"))?.query_map([], from_row)?.collect()
}

pub(super) fn by_id(tx: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<Network>> {
    tx.prepare_cached(&format!("{COLUMNS} WHERE id = ?"))?.query_row([id], from_row).optional()
}

pub(super) fn by_name(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<Network>> {
    tx.prepare_cached(&format!("{COLUMNS} WHERE name = ?"))?.query_row([name], from_row).optional()
}

/// Those whose id begins so, at most two.
pub(super) fn by_prefix(tx: &Transaction<'_>, prefix: &str) -> rusqlite::Result<Vec<Network>> {
    tx.prepare_cached(&format!("{COLUMNS} WHERE substr(id, 1, ?) = ? LIMIT 2"))?
        .query_map((prefix.len() as i64, prefix), from_row)?
        .collect()
}

pub(super) fn insert(tx: &Transaction<'_>, network: &Network) -> rusqlite::Result<()> {
    let json = serde_json::to_string(network).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    tx.prepare_cached("INSERT INTO networks (id, name, json) VALUES (?, ?, ?)")?.execute((
        &network.id,
        &network.name,
        json,
    ))?;
    Ok(())
}

/// Removes the row; whether there was one.
pub(super) fn delete(tx: &Transaction<'_>, id: &str) -> rusqlite::Result<bool> {
    Ok(tx.prepare_cached("DELETE FROM networks WHERE id = ?")?.execute([id])? > 0)
}

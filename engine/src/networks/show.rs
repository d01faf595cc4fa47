//! A network as docker's JSON shows it.

use rbuild_runtime::network::Bridge;
use serde_json::{Map, Value, json};

use super::{Driver, Network, Networks, failed};
use crate::error::Error;

impl Networks {
    /// The whole of what `network inspect` prints for a network.
    pub fn inspect(&self, network: &Network) -> Result<Value, Error> {
        let mut members = Map::new();
        for (seen, connection) in self.members(network)? {
            let endpoint = &connection.endpoint;
            let address6 =
                endpoint.address6.zip(endpoint.subnet6).map(|(a, (subnet, _))| format!("{a}/{}", subnet.prefix()));
            let value = json!({
                "Name": seen.container.name,
                "EndpointID": connection.endpoint_id,
                "MacAddress": endpoint.mac.to_string(),
                "IPv4Address": format!("{}/{}", endpoint.address, endpoint.subnet.prefix()),
                "IPv6Address": address6.unwrap_or_default(),
            });
            members.insert(seen.container.id, value);
        }
        Ok(json!({
            "Name": network.name,
            "Id": network.id,
            "Created": crate::containers::timestamp(network.created),
            "Scope": "local",
            "Driver": network.driver.as_str(),
            "EnableIPv4": true,
            "EnableIPv6": network.bridge.subnet6.is_some(),
            "IPAM": {
                "Driver": "default",
                "Options": if network.is_predefined() { Value::Null } else { json!({}) },
                "Config": ranges(network)?,
            },
            "Internal": network.bridge.internal,
            "Attachable": network.attachable,
            "Ingress": false,
            "ConfigFrom": { "Network": "" },
            "ConfigOnly": false,
            "Containers": members,
            "Options": network.options,
            "Labels": network.labels,
        }))
    }
}

fn ranges(network: &Network) -> Result<Value, Error> {
    if network.driver != Driver::Bridge {
        return Ok(Value::Null);
    }
    // The default one gets its range when it is made.
    let bridge = match (network.bridge.subnet, network.bridge.gateway) {
        (Some(subnet), Some(gateway)) => (subnet, gateway),
        _ => {
            let bridge = Bridge::ensure(&network.bridge).map_err(failed)?;
            (bridge.subnet, bridge.gateway)
        }
    };
    let mut first = json!({ "Subnet": bridge.0.to_string() });
    if let Some(range) = network.range {
        first["IPRange"] = json!(range.to_string());
    }
    first["Gateway"] = json!(bridge.1);
    let mut all = vec![first];
    if let Some((subnet, gateway)) = network.bridge.subnet6 {
        let mut second = json!({ "Subnet": subnet.to_string(), "Gateway": gateway });
        if let Some(range) = network.range6 {
            second["IPRange"] = json!(range.to_string());
        }
        all.push(second);
    }
    for (name, address) in &network.auxiliary {
        let of = if address.is_ipv4() { 0 } else { 1 };
        all[of]["AuxiliaryAddresses"][name] = json!(address);
    }
    Ok(Value::Array(all))
}

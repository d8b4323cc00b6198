//! What a request asks for, and whether that is what a signer's name promises: upstream's rules in upstream's words.

use anyhow::{Result, bail, ensure};
use x509_parser::{
    certification_request::X509CertificationRequest, extensions::GeneralName, extensions::ParsedExtension,
    pem::parse_x509_pem, prelude::FromDer,
};

use super::{API_CLIENT, KUBELET_CLIENT, KUBELET_SERVING};

const NODE: &str = "system:node:";
const NODES: &str = "system:nodes";

/// The part of a request that rules speak of.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// Empty when there is not exactly one: readers differ in which of several they take.
    pub common_name: String,
    pub organizations: Vec<String>,
    dns: usize,
    addresses: usize,
    emails: usize,
    uris: usize,
}

impl Request {
    pub fn parse(pem: &[u8]) -> Result<Self> {
        let (_, block) = parse_x509_pem(pem)?;
        let (_, request) = X509CertificationRequest::from_der(&block.contents)?;
        let subject = &request.certification_request_info.subject;
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().map(str::to_owned).unwrap_or_default()
        };
        let names: Vec<String> = subject.iter_common_name().map(text).collect();
        let common_name = if let [one] = &names[..] { one.clone() } else { String::new() };
        let mut found =
            Self { common_name, organizations: subject.iter_organization().map(text).collect(), ..Self::default() };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                names.general_names.iter().for_each(|name| found.count(name));
            }
        }
        Ok(found)
    }

    fn count(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(_) => self.dns += 1,
            GeneralName::IPAddress(_) => self.addresses += 1,
            GeneralName::RFC822Name(_) => self.emails += 1,
            GeneralName::URI(_) => self.uris += 1,
            _ => {}
        }
    }

    /// # Errors
    /// Why this signer may not sign it; the message is for the request's `Failed` condition.
    pub fn fits(&self, signer: &str, usages: &[String]) -> Result<()> {
        match signer {
            API_CLIENT => api_client(usages),
            KUBELET_CLIENT => self.kubelet_client(usages),
            KUBELET_SERVING => self.kubelet_serving(usages),
            other => bail!("signer {other} is not of this cluster"),
        }
    }

    fn kubelet_client(&self, usages: &[String]) -> Result<()> {
        self.of_node()?;
        ensure!(self.dns == 0, "DNS subjectAltNames are not allowed");
        ensure!(self.emails == 0, "Email subjectAltNames are not allowed");
        ensure!(self.addresses == 0, "IP subjectAltNames are not allowed");
        ensure!(self.uris == 0, "URI subjectAltNames are not allowed");
        exactly(usages, &["key encipherment", "digital signature", "client auth"])?;
        self.named_as_node()
    }

    fn kubelet_serving(&self, usages: &[String]) -> Result<()> {
        self.of_node()?;
        ensure!(self.dns + self.addresses > 0, "DNS or IP subjectAltName is required");
        ensure!(self.emails == 0, "Email subjectAltNames are not allowed");
        ensure!(self.uris == 0, "URI subjectAltNames are not allowed");
        exactly(usages, &["key encipherment", "digital signature", "server auth"])?;
        self.named_as_node()
    }

    fn of_node(&self) -> Result<()> {
        ensure!(self.organizations == [NODES], "subject organization is not system:nodes");
        Ok(())
    }

    fn named_as_node(&self) -> Result<()> {
        ensure!(self.common_name.starts_with(NODE), "subject common name does not begin with system:node: ");
        Ok(())
    }
}

/// These usages and no other; the first (encipherment of keys) means nothing to keys that are not RSA's.
fn exactly(usages: &[String], required: &[&str]) -> Result<()> {
    let same = |wanted: &[&str]| {
        usages.iter().all(|usage| wanted.contains(&usage.as_str()))
            && wanted.iter().all(|usage| usages.iter().any(|u| u == usage))
    };
    ensure!(same(required) || same(&required[1..]), "usages did not match {required:?}");
    Ok(())
}

fn api_client(usages: &[String]) -> Result<()> {
    for usage in usages {
        let known = matches!(usage.as_str(), "digital signature" | "key encipherment" | "client auth");
        ensure!(known, "invalid usage for client certificate: {usage}");
    }
    ensure!(usages.iter().any(|u| u == "client auth"), "missing required usage for client certificate: client auth");
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    /// A request in PEM for a name and a group, with names of these kinds.
    pub fn request(name: &str, group: &str, names: Vec<SanType>) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = names;
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap();
        request.pem().unwrap().into_bytes()
    }

    fn verdict(signer: &str, pem: &[u8], usages: &[&str]) -> String {
        let usages: Vec<String> = usages.iter().map(|u| (*u).to_owned()).collect();
        Request::parse(pem).unwrap().fits(signer, &usages).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_signer_signs_what_its_name_promises_and_nothing_else() {
        let dns = || vec![SanType::DnsName("n".try_into().unwrap())];
        let email = || vec![SanType::Rfc822Name("a@b.c".try_into().unwrap())];
        let uri = || vec![SanType::URI("spiffe://a/b".try_into().unwrap())];
        let address = || vec![SanType::IpAddress([10, 0, 0, 1].into())];
        let (client, serving) = (&["digital signature", "client auth"][..], &["digital signature", "server auth"][..]);
        let node = "system:node:n";
        for (signer, pem, usages, want) in [
            (KUBELET_CLIENT, request(node, NODES, vec![]), client, ""),
            (
                KUBELET_CLIENT,
                request(node, NODES, vec![]),
                &["key encipherment", "digital signature", "client auth"],
                "",
            ),
            (
                KUBELET_CLIENT,
                request(node, "system:masters", vec![]),
                client,
                "subject organization is not system:nodes",
            ),
            (
                KUBELET_CLIENT,
                request("n", NODES, vec![]),
                client,
                "subject common name does not begin with system:node: ",
            ),
            (KUBELET_CLIENT, request(node, NODES, dns()), client, "DNS subjectAltNames are not allowed"),
            (KUBELET_CLIENT, request(node, NODES, address()), client, "IP subjectAltNames are not allowed"),
            (KUBELET_CLIENT, request(node, NODES, email()), client, "Email subjectAltNames are not allowed"),
            (KUBELET_CLIENT, request(node, NODES, uri()), client, "URI subjectAltNames are not allowed"),
            (
                KUBELET_CLIENT,
                request(node, NODES, vec![]),
                serving,
                "usages did not match [\"key encipherment\", \"digital signature\", \"client auth\"]",
            ),
            (KUBELET_SERVING, request(node, NODES, dns()), serving, ""),
            (KUBELET_SERVING, request(node, NODES, address()), serving, ""),
            (KUBELET_SERVING, request(node, NODES, vec![]), serving, "DNS or IP subjectAltName is required"),
            (KUBELET_SERVING, request(node, NODES, email()), serving, "DNS or IP subjectAltName is required"),
            (API_CLIENT, request("jane", "people", dns()), client, ""),
            (
                API_CLIENT,
                request("jane", "people", vec![]),
                serving,
                "invalid usage for client certificate: server auth",
            ),
            (
                API_CLIENT,
                request("jane", "people", vec![]),
                &["digital signature"],
                "missing required usage for client certificate: client auth",
            ),
            ("example.com/a", request("jane", "people", vec![]), client, "signer example.com/a is not of this cluster"),
        ] {
            assert_eq!(verdict(signer, &pem, usages), want, "{signer} {usages:?}");
        }
    }

    #[test]
    fn a_request_with_two_names_has_none() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        params.distinguished_name.push(DnType::CommonName, "system:node:n");
        params.distinguished_name.push(DnType::CustomDnType(vec![2, 5, 4, 3]), "system:node:other");
        let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        assert_eq!(Request::parse(pem.as_bytes()).unwrap().common_name, "");
    }
}

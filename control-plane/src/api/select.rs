//! Which objects a list or a watch is about: label selector, field selector, namespace.

use leme_schema::selectors::{FieldSelector, LabelSelector, SelectorError, unsupported_field};

use super::{
    namespace,
    object::Item,
    path::Target,
    query::Query,
    status::{Failure, Outcome},
};
use crate::resources::Resource;

enum Field {
    Name,
    Namespace,
    /// Index into the resource's selectable fields.
    Other(usize),
}

/// A parsed selection; matching allocates nothing.
pub struct Selection {
    namespace: String,
    labels: LabelSelector,
    fields: Vec<(Field, String, bool)>,
}

impl Selection {
    pub fn parse(resource: &Resource, query: &Query, target: &Target) -> Outcome<Self> {
        let labels = LabelSelector::parse(query.get("labelSelector")).map_err(bad)?;
        let terms = FieldSelector::parse(query.get("fieldSelector")).map_err(bad)?.terms;
        let mut fields = Vec::with_capacity(terms.len());
        for term in terms {
            fields.push((field(resource, &term.field)?, term.value, term.equal));
        }
        // A watch on one name is a list of one.
        if !target.name.is_empty() {
            fields.push((Field::Name, target.name.clone(), true));
        }
        Ok(Self { namespace: namespace(resource, target).to_owned(), labels, fields })
    }

    /// Nothing is filtered beyond the namespace.
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty()
    }

    pub fn matches(&self, item: &Item) -> bool {
        (self.namespace.is_empty() || *self.namespace == *item.namespace)
            && self.fields.iter().all(|(field, value, equal)| (value_of(field, item) == value) == *equal)
            && (self.labels.is_everything() || self.labels.matches_with(|key| item.label(key)))
    }
}

fn field(resource: &Resource, name: &str) -> Outcome<Field> {
    match name {
        "metadata.name" => Ok(Field::Name),
        "metadata.namespace" => Ok(Field::Namespace),
        other => resource
            .fields
            .iter()
            .position(|f| *f == other)
            .map(Field::Other)
            .ok_or_else(|| bad(unsupported_field(other))),
    }
}

fn value_of<'a>(field: &Field, item: &'a Item) -> &'a str {
    match field {
        Field::Name => &item.name,
        Field::Namespace => &item.namespace,
        Field::Other(index) => item.fields.get(*index).and_then(Option::as_deref).unwrap_or_default(),
    }
}

fn bad(error: SelectorError) -> Failure {
    Failure::bad_request(error.to_string())
}

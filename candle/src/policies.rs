//! What queries attend to.

use std::sync::Arc;

use sample_attention::{HeadPolicy, Policy};

/// How much of the keys to keep: one policy for all query heads, or one for each.
///
/// ```
/// use candle_sample_attention::{HeadPolicy, Policies, Policy};
/// let policy = Policy::default();
/// let _: Policies = (&policy).into();
/// let heads = vec![HeadPolicy::Dense, HeadPolicy::Selected(policy)];
/// let _: Policies = (&heads).into();
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Policies<'a> {
    /// All query heads alike.
    Same(&'a Policy),
    /// `policies[h]` for query head `h`.
    PerHead(&'a [HeadPolicy]),
}

impl<'a> From<&'a Policy> for Policies<'a> {
    fn from(policy: &'a Policy) -> Self {
        Policies::Same(policy)
    }
}

impl<'a> From<&'a [HeadPolicy]> for Policies<'a> {
    fn from(policies: &'a [HeadPolicy]) -> Self {
        Policies::PerHead(policies)
    }
}

impl<'a> From<&'a Vec<HeadPolicy>> for Policies<'a> {
    fn from(policies: &'a Vec<HeadPolicy>) -> Self {
        Policies::PerHead(policies)
    }
}

/// The same, as an op holds it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Visible {
    /// Every key, or every key up to the query's own position.
    Dense {
        /// The latter.
        causal: bool,
    },
    Same(Policy),
    PerHead(Arc<[HeadPolicy]>),
}

impl Visible {
    pub(crate) fn is_causal(&self) -> bool {
        !matches!(self, Visible::Dense { causal: false })
    }
}

impl From<Policies<'_>> for Visible {
    fn from(policies: Policies<'_>) -> Self {
        match policies {
            Policies::Same(policy) => Visible::Same(*policy),
            Policies::PerHead(policies) => Visible::PerHead(policies.into()),
        }
    }
}

// The shop works without this script: only the button that needs it stays hidden.
const button = document.getElementById("suggest");
const notice = document.getElementById("suggestion");

function show(problem) {
  notice.textContent = `${problem.title}. ${problem.detail} `;
  if (problem.upgrade_url) {
    const link = document.createElement("a");
    link.href = problem.upgrade_url;
    link.textContent = "Get more with Growth";
    notice.append(link);
  }
}

// The plan beside the form, with the call that was just made.
async function refreshPlan() {
  const page = await fetch(location.pathname).then((response) => response.text());
  const plan = new DOMParser().parseFromString(page, "text/html").querySelector(".plan");
  document.querySelector(".plan").replaceWith(plan);
}

async function suggest() {
  const { kind, name } = button.form.elements;
  const response = await fetch(`${button.dataset.url}?kind=${kind.value}`);
  const answer = await response.json();
  if (response.ok) {
    notice.textContent = "";
    name.value = answer.name;
    name.focus();
  } else {
    show(answer);
  }
  await refreshPlan();
}

button.hidden = false;
button.addEventListener("click", suggest);

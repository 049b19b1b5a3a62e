// The screen: a conversation, a text field, and a gauge of memory, bits and hit rate.
package dev.dollop.sample

import android.os.Bundle
import androidx.activity.ComponentActivity
import androidx.activity.compose.rememberLauncherForActivityResult
import androidx.activity.compose.setContent
import androidx.activity.result.contract.ActivityResultContracts.OpenDocument
import androidx.activity.viewModels
import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.layout.safeDrawingPadding
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.foundation.lazy.rememberLazyListState
import androidx.compose.material3.Button
import androidx.compose.material3.Card
import androidx.compose.material3.LinearProgressIndicator
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.LaunchedEffect
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.unit.dp
import dev.dollop.Message

/** Shows the chat. */
class MainActivity : ComponentActivity() {
    private val model: ChatModel by viewModels()

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContent { MaterialTheme { Screen(model) } }
    }

    override fun onStop() {
        super.onStop()
        model.hidden()
    }
}

@Composable
private fun Screen(model: ChatModel) {
    val picker = rememberLauncherForActivityResult(OpenDocument()) { uri -> uri?.let(model::open) }
    Column(Modifier.fillMaxSize().safeDrawingPadding().padding(12.dp), Arrangement.spacedBy(8.dp)) {
        model.gauge?.let { GaugeCard(it) }
        model.note?.let { Text(it, color = MaterialTheme.colorScheme.error) }
        Conversation(model.messages, Modifier.weight(1f))
        if (model.ready) {
            Entry(model)
        } else {
            Button(onClick = { picker.launch(arrayOf("*/*")) }) { Text("Open a model") }
        }
    }
}

/** Shows each part of the memory as a bar, relative to the budget, and the mean bits and hit rate. */
@Composable
private fun GaugeCard(gauge: Gauge) {
    val plan = gauge.plan
    val budget = (plan.budget ?: plan.totalBytes).toFloat()
    Card(Modifier.fillMaxWidth()) {
        Column(Modifier.padding(12.dp), Arrangement.spacedBy(4.dp)) {
            for ((name, bytes) in listOf("weights" to plan.denseBytes, "chat" to plan.kvBytes + plan.scratchBytes, "experts" to plan.expertBytes)) {
                Row(verticalAlignment = Alignment.CenterVertically) {
                    Text("$name ${bytes / 1_000_000} MB", Modifier.weight(1f), style = MaterialTheme.typography.labelSmall)
                    LinearProgressIndicator(progress = { bytes / budget }, modifier = Modifier.weight(1f))
                }
            }
            val stats = gauge.stats
            val bits = stats.meanBits?.let { "%.2f bits".format(it) } ?: "all experts in memory"
            val hits = stats.hitRate?.let { ", %.0f %% hits".format(100 * it) } ?: ""
            val read = stats.stream?.let { ", ${it.bytesWanted / 1_000_000} MB read" } ?: ""
            Text("$bits$hits$read, %.1f tok/s".format(gauge.tokensPerSecond), style = MaterialTheme.typography.labelMedium)
            gauge.trimmed?.let { Text(it, style = MaterialTheme.typography.labelSmall) }
        }
    }
}

@Composable
private fun Conversation(messages: List<Message>, modifier: Modifier) {
    val list = rememberLazyListState()
    LaunchedEffect(messages.size, messages.lastOrNull()) { if (messages.isNotEmpty()) list.scrollToItem(messages.lastIndex) }
    LazyColumn(modifier.fillMaxWidth(), list, verticalArrangement = Arrangement.spacedBy(8.dp)) {
        items(messages) { message ->
            Text(message.role, style = MaterialTheme.typography.labelSmall)
            Text(message.content)
        }
    }
}

@Composable
private fun Entry(model: ChatModel) {
    var text by rememberSaveable { mutableStateOf("") }
    Row(Modifier.fillMaxWidth(), Arrangement.spacedBy(8.dp), Alignment.CenterVertically) {
        OutlinedTextField(text, { text = it }, Modifier.weight(1f), placeholder = { Text("Message") })
        if (model.answering) {
            Button(onClick = model::stop) { Text("Stop") }
        } else {
            Button(onClick = { model.send(text); text = "" }) { Text("Send") }
        }
    }
}
